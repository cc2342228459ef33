"""--metrics on real processes: what scrapers and health checks see while workers and supervisors come and go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
from helpers.opened import open_folder
from helpers.proc import children, gone, open_files
from helpers.scraping import Samples, get, metrics_port
from helpers.servers import ECHO, command, serving, state, upgrade
from helpers.support import free_port, need_root, run_script, wait_until
from prometheus_client.parser import text_string_to_metric_families

from prefork.exporter.server import MAX_CLIENTS
from prefork.testing import Server, run_program, run_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def exporter_pid(server: Server) -> int:
    """Return the pid of the process that answers; 0 while there is none."""
    found = [pid for pid in children(server.pid) if _arguments(pid).startswith("prefork: metrics")]
    return found[0] if found else 0


def _arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def send(port: int, data: bytes) -> bytes:
    """Send raw bytes, and return all that comes until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(65536):
            received += data
    return received


def test_paths_answer_as_documented(folder: Path) -> None:
    with serving(folder, "--metrics", "127.0.0.1:0") as server:
        port = metrics_port(server)
        samples = Samples(port)
        assert samples.sum("prefork_workers", state="ready") == 2
        assert samples.sum("prefork_build_info") == 1
        _, fields, plain = get(port, "/metrics")
        assert fields["content-type"].startswith("text/plain; version=0.0.4")
        assert b'prefork_workers{state="ready"} 2.0\n' in plain
        assert {each.name for each in text_string_to_metric_families(plain.decode())} >= {"prefork_workers"}
        assert get(port, "/healthz")[::2] == (200, b"ok\n")
        assert get(port, "/readyz")[::2] == (200, b"ready\n")
        _, fields, body = get(port, "/status.json")
        assert fields["content-type"] == "application/json"
        assert json.loads(body)["pid"] == server.pid
        assert get(port, "/")[0] == 200
        code, fields, body = get(port, "/metrics", method="HEAD")
        assert (code, body) == (200, b"")
        assert int(fields["content-length"]) > 1000
        assert get(port, "/metrics?x=1")[0] == 200
        # Nothing changes by a request, and what cannot be read is refused.
        code, fields, _ = get(port, "/metrics", method="POST")
        assert (code, fields["allow"]) == (405, "GET, HEAD")
        assert get(port, "/nothing")[0] == 404
        # A page of another site, whose name resolves to this machine now, is not answered.
        for host, status in (("evil.example:9100", 403), ("127.0.0.1:1", 200), ("[::1]:1", 200), ("localhost", 200)):
            assert get(port, "/status.json", fields={"Host": host})[0] == status
        for request, status in (
            (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
            (b"GET http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            (b"GET /metrics HTTP/2.0\r\nHost: x\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 9000, 431),
        ):
            assert send(port, request).startswith(b"HTTP/1.1 %d " % status), request
        twice = send(port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2)
        assert twice.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.slow
def test_the_process_is_replaced_and_does_not_outlive_its_supervisor(folder: Path) -> None:
    with serving(folder, "--metrics", "127.0.0.1:0", workers=1) as server:
        port = metrics_port(server)
        assert get(port, "/healthz")[0] == 200
        first = exporter_pid(server)
        os.kill(first, signal.SIGKILL)
        # The connection waits in the queue until the next process accepts.
        assert get(port, "/healthz")[0] == 200
        second = exporter_pid(server)
        assert second not in (0, first)
        assert "--metrics: not served: its process died: signal 9" in server.stderr()
        server.signal(signal.SIGKILL)
        wait_until(lambda: gone(second))


def test_readiness_ends_with_the_drain_and_an_upgrade_hands_the_address_on(folder: Path) -> None:
    with serving(folder, "--metrics", "127.0.0.1:0", workers=1) as server:
        port = metrics_port(server)
        before = json.loads(get(port, "/status.json")[2])["pid"]
        after = upgrade(folder)
        assert after != before
        wait_until(lambda: gone(before))
        assert json.loads(get(port, "/status.json")[2])["pid"] == after
        with socket.create_connection(("127.0.0.1", server.port)) as open_connection:
            open_connection.sendall(b"hello\n")
            assert open_connection.recv(100) == b"hello\n"
            os.kill(after, signal.SIGTERM)
            wait_until(lambda: state(folder) == "stopping")
            assert get(port, "/readyz")[::2] == (503, b"the server is stopping\n")
            assert get(port, "/healthz")[0] == 200
        wait_until(lambda: gone(after))
        with pytest.raises(ConnectionRefusedError):
            get(port, "/healthz")


@pytest.mark.slow
def test_a_supervisor_that_does_not_answer_is_unhealthy_and_many_scrapes_are_one_request(folder: Path) -> None:
    with serving(folder, "--metrics", "127.0.0.1:0", workers=1) as server:
        port = metrics_port(server)
        assert get(port, "/healthz")[0] == 200
        server.signal(signal.SIGSTOP)
        try:
            assert get(port, "/healthz")[::2] == (503, b"the supervisor does not answer\n")
        finally:
            server.signal(signal.SIGCONT)
        codes: list[int] = []
        threads = [threading.Thread(target=lambda: codes.append(get(port, "/metrics")[0])) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [200] * 30


@pytest.mark.slow
def test_silent_clients_do_not_keep_others_out_for_long(folder: Path) -> None:
    with serving(folder, "--metrics", "127.0.0.1:0", workers=1) as server, contextlib.ExitStack() as stack:
        port = metrics_port(server)
        for _ in range(2 * MAX_CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert get(port, "/healthz")[0] == 200


def test_the_process_runs_as_the_workers_user() -> None:
    need_root()
    with open_folder() as folder:
        (folder / "service.py").write_text(ECHO)
        options = ("--user", "nobody", "--insecure-paths", "--metrics", "127.0.0.1:0")
        secret = {"DATABASE_PASSWORD": "hunter2"}
        with run_server("service:handle", "-w", "1", *options, cwd=folder, env=secret) as server:
            # Whatever is imported or read was so before the change of user, whom this Python may not even be open to.
            assert [get(metrics_port(server), path)[0] for path in ("/healthz", "/metrics", "/")] == [200] * 3
            pid = exporter_pid(server)
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            assert set(status["Uid"].split()) != {"0"}
            assert status["CapEff"] == "0" * 16
            assert status["NoNewPrivs"] == "1"
            # Its sockets and epolls: nothing of the service, and nothing that was inherited by chance.
            own = {path for fd, path in open_files(pid).items() if fd > 2}
            assert {path.partition(":")[0] for path in own} <= {"/dev/null", "socket", "anon_inode"}
            shared = {path for path in own if path.startswith("socket:")} & set(open_files(server.pid).values())
            assert len(shared) == 1
            assert "hunter2" not in Path(f"/proc/{pid}/environ").read_text()


@pytest.mark.slow
def test_what_cannot_be_served_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command(folder, "serve", "service:handle", "--bind", "127.0.0.1:0", "--metrics", f":{port}")
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"prefork: --metrics 127.0.0.1:{port}: address already in use")
    port = free_port()
    done = command(folder, "serve", "service:handle", "--bind", f"127.0.0.1:{port}", "--metrics", f":{port}")
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].endswith("already in use (--bind of this command has it)")
    code = """
        import importlib.util, sys
        find, missing = importlib.util.find_spec, "prometheus_client"
        importlib.util.find_spec = lambda name, package=None: None if name == missing else find(name, package)
        from prefork.cli.main import main
        sys.exit(main())
    """
    done = run_script(code, "check", "service:handle", "--metrics", ":9100", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "prefork: --metrics: prometheus-client is not installed (pip install 'prefork[metrics]')\n"


PROGRAM = """
import asyncio, prefork
answers = prefork.metrics.counter("answers", "Lines answered.")
async def handle(reader, writer):
    writer.write(await reader.readline())
    answers.inc()
    await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def test_a_program_is_measured_too_on_a_socket_in_the_file_system(folder: Path) -> None:
    (folder / "program.py").write_text(PROGRAM)
    path = folder / "metrics"
    options = ("-w", "1", "--metrics", f"unix:{path}")
    with run_program("program.py", options=options, cwd=folder) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with sock.makefile("rb") as file:
                lines = file.read().decode().splitlines()
        assert 'answers_total{worker="0"} 1.0' in lines
        assert 'prefork_connections_accepted_total{worker="0"} 1.0' in lines
        assert server.stop() == 0
    assert not path.exists()
