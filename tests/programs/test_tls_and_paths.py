"""Programs that speak TLS by themselves, and programs on unix sockets: reloaded under load as the others are."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.support import free_port, slow

from prefork.testing import run_program
from programs.catalogue import SERVERS, Program
from programs.clients import DEADLINE, HOST, HTTP, Client
from programs.load import loading
from programs.running import START, need_installed
from programs.test_run import reload

pytestmark = pytest.mark.deadline(180)

TLS = {
    "aiohttp": ("aiohttp_app.py", "{host}", "{port}", "{cert}", "{key}"),
    "tornado": ("tornado_app.py", "{host}", "{port}", "{cert}", "{key}"),
    "uvicorn": (
        *("-m", "uvicorn", "app:app", "--host", "{host}", "--port", "{port}", "--log-level", "warning"),
        *("--ssl-certfile", "{cert}", "--ssl-keyfile", "{key}"),
    ),
    "hypercorn": (
        *("-m", "hypercorn", "app:app", "--bind", "{host}:{port}", "--workers", "0"),
        *("--certfile", "{cert}", "--keyfile", "{key}"),
    ),
}
PATHS = {
    "aiohttp": ("aiohttp_app.py", "--path", "{path}"),
    "uvicorn": ("-m", "uvicorn", "app:app", "--uds", "{path}", "--log-level", "warning"),
    "hypercorn": ("-m", "hypercorn", "app:app", "--bind", "unix:{path}", "--workers", "0"),
}


def need(name: str) -> None:
    need_installed(Program(name, (), HTTP, (name,)))


@contextlib.contextmanager
def _get(connect: Callable[[], socket.socket]) -> Iterator[Callable[[], int]]:
    """Ask by HTTP over what `connect` returns."""
    connection = http.client.HTTPConnection(HOST, timeout=DEADLINE)
    connection.sock = connect()

    def get() -> int:
        connection.request("GET", "/")
        return int(connection.getresponse().read())

    try:
        yield get
    finally:
        connection.close()


def by_tls(authority: str) -> Client:
    """Return a client that trusts the `authority`."""
    context = ssl.create_default_context(cafile=authority)

    def hold(port: int) -> contextlib.AbstractContextManager[Callable[[], int]]:
        def connect() -> socket.socket:
            sock = socket.create_connection((HOST, port), timeout=DEADLINE)
            try:
                return context.wrap_socket(sock, server_hostname="localhost")
            except OSError:
                sock.close()
                raise

        return _get(connect)

    return Client(hold)


def by_path(path: str) -> Client:
    """Return a client of this path; the port does not count."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            # Blocking: with a timeout it is refused where the queue is full (connect(2), EAGAIN).
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        sock.settimeout(DEADLINE)
        return sock

    return Client(lambda port: _get(connect))


@pytest.mark.parametrize("name", [name if name == "tornado" else slow(name) for name in TLS])
def test_a_program_speaks_tls_by_itself(name: str, certs: dict[str, str]) -> None:
    need(name)
    port = free_port()
    words = [word.format(host=HOST, port=port, cert=certs["cert"], key=certs["key"]) for word in TLS[name]]
    with run_program(*words, options=("-w", "2"), cwd=SERVERS, timeout=START) as server:
        with loading(by_tls(certs["ca"]), port) as ledger:
            ledger.wait_for(set(server.worker_pids()))
            reload(server)
            ledger.wait_for(set(server.worker_pids()))
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"
        assert server.stop() == 0, server.stderr()


@pytest.mark.parametrize("name", [slow(name) for name in PATHS])
def test_a_program_on_a_unix_socket_keeps_its_file(name: str, tmp_path: Path) -> None:
    need(name)
    path = str(tmp_path / "socket")
    words = [word.format(path=path) for word in PATHS[name]]
    with run_program(*words, options=("-w", "2"), cwd=SERVERS, timeout=START) as server:
        inode = os.stat(path).st_ino
        with loading(by_path(path), 0) as ledger:
            ledger.wait_for(set(server.worker_pids()))
            reload(server)
            ledger.wait_for(set(server.worker_pids()))
        assert ledger.failures == [], f"{ledger.report()}\n{server.stderr()}"
        assert os.stat(path).st_ino == inode
        assert server.stop() == 0, server.stderr()
    assert not os.path.exists(path)
