"""The process of --metrics under hostile clients, and in trouble itself: service and supervisor notice nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.proc import children, cpu_share, gone
from helpers.scraping import get, metrics_port
from helpers.servers import ECHO, answer, asking, end, serves, serving, status, upgrade
from helpers.support import need_root, wait_until

from prefork.core.exporter_settings import SILENCE_TIMEOUT
from prefork.testing import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


@contextlib.contextmanager
def measured(folder: Path) -> Iterator[tuple[Server, int]]:
    """Serve with --metrics; the server, and the port of its metrics once they are served."""
    with serving(folder, "--metrics", "127.0.0.1:0", workers=1) as server:
        port = metrics_port(server)
        wait_until(lambda: get(port, "/readyz")[0] == 200)
        yield server, port


def exporter(server: Server) -> int:
    """Return the pid of the process of --metrics; 0 if there is none."""
    others = [pid for pid in children(server.pid) if pid not in server.worker_pids()]
    return next((pid for pid in others if b"metrics" in Path(f"/proc/{pid}/cmdline").read_bytes()), 0)


def exchange(port: int, request: bytes, timeout: float = 10) -> bytes:
    """Send bytes, and return all that comes back until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65536):
                received += data
        return received


#: Whatever stands behind the first request must not be answered as a second one.
REFUSED = {
    "a body by its length": b"Content-Length: 36\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a body in chunks": b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 0, 5\r\n\r\nhello",
    "a second host": b"Host: y\r\n\r\n",
    "a space before the colon": b"A : x\r\n\r\n",
    "a continued line": b"A: x\r\n y\r\n\r\n",
    "a zero byte": b"A: \0\r\n\r\n",
    "a head without an end": b"A: " + b"a" * 1_000_000,
}


def test_no_form_of_a_request_is_read_as_two(folder: Path) -> None:
    with measured(folder) as (server, port):
        for name, rest in REFUSED.items():
            found = exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + rest)
            assert found.count(b"HTTP/1.1 ") == 1, (name, found)
            assert found[9:12] in (b"400", b"413", b"431"), (name, found)
        for start in (b"PRI * HTTP/2.0", b"CONNECT a:1 HTTP/1.1", b"GET http://x/ HTTP/1.1", b"get / HTTP/1.1"):
            assert exchange(port, start + b"\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        for method in ("POST", "PUT", "DELETE", "TRACE", "OPTIONS"):
            assert get(port, "/", method)[0] == 405
        pipelined = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2 + b"GET /readyz HTTP/1.0\r\n\r\n"
        assert exchange(port, pipelined).count(b"HTTP/1.1 200 OK") == 3
        assert serves(server)
        # What strangers send is not for the log.
        assert "HTTP" not in server.stderr()


@pytest.mark.slow
def test_slow_clients_do_not_keep_the_others_waiting(folder: Path) -> None:
    """180 of them send nothing: with 5 s for each, three batches of 64 would take longer than a scraper waits."""
    with measured(folder) as (server, port), contextlib.ExitStack() as stack:
        for _ in range(180):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert exchange(port, b"GET /healthz HTTP/1.0\r\n\r\n", 6).startswith(b"HTTP/1.1 200 ")
        assert serves(server)


@pytest.mark.slow
def test_no_scrape_fails_in_an_upgrade(folder: Path) -> None:
    """Those that wait for the old supervisor's status when it hands over are answered, too."""
    with measured(folder) as (server, port), contextlib.ExitStack() as stack:
        answers: set[str] = set()
        done = threading.Event()

        def scrape() -> None:
            while not done.is_set():
                received = exchange(port, b"GET /metrics HTTP/1.0\r\n\r\n")
                head, _, body = received.partition(b"\r\n\r\n")
                # One that is cut off is no answer, and neither is none at all.
                whole = b" 200 OK" in head and f"Content-Length: {len(body)}\r\n".encode() in head
                answers.add("whole" if whole else repr(received[:200]))

        scrapers = [threading.Thread(target=scrape) for _ in range(3)]
        for each in scrapers:
            each.start()
        stack.callback(lambda: [each.join() for each in scrapers])
        stack.callback(done.set)
        stack.callback(end, upgrade(folder))
        wait_until(lambda: gone(server.pid))
        done.set()
        for each in scrapers:
            each.join()
        assert answers == {"whole"}


@pytest.mark.slow
def test_a_process_in_trouble_harms_nothing_else(folder: Path) -> None:
    need_root()
    with measured(folder) as (server, port):
        pid = exporter(server)
        os.kill(pid, signal.SIGSTOP)
        # Neither does the supervisor wait for it, nor a reload.
        assert status(folder)["state"] == "serving"
        assert answer(asking(folder, {"command": "reload"}))["ok"]
        assert serves(server)
        os.kill(pid, signal.SIGCONT)
        assert get(port, "/healthz")[0] == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 2,) * 2)
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            assert cpu_share(pid, server.pid, seconds=0.5) < 0.3
        wait_until(lambda: get(port, "/healthz")[0] == 200)
        assert exporter(server) == pid


@pytest.mark.slow
def test_a_process_that_hangs_is_replaced(folder: Path) -> None:
    with measured(folder) as (server, port):
        pid = exporter(server)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: exporter(server) not in (0, pid), SILENCE_TIMEOUT + 15)
        wait_until(lambda: get(port, "/healthz")[0] == 200)
