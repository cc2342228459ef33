"""--reuse-port: a socket for each worker, and no connection that waits in one of them is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.proc import state, tcp_sockets
from helpers.support import need, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os, time

async def handle(stream):
    async for line in stream:
        if line == b"block\\n":
            await stream.send(b"now\\n")
            time.sleep(3)
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def ask(server: Server) -> int:
    with connect(server) as sock:
        return answer(sock)


def answer(sock: socket.socket, word: bytes = b"hello\n") -> int:
    sock.sendall(word)
    return int(sock.makefile("rb").readline())


def stop_all(server: Server) -> list[int]:
    """Stop all workers with SIGSTOP, so that connections queue up."""
    pids = server.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        wait_until(lambda pid=pid: state(pid) == "T")
    return pids


def test_each_worker_has_a_socket_of_its_own_and_all_serve(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", "--reuse-port", cwd=folder) as server:
        assert len(tcp_sockets(server.port, "0A")) == 3
        assert {ask(server) for _ in range(100)} == set(server.worker_pids())
        assert len(re.findall("listening on", server.stderr())) == 1
        assert server.stop() == 0
        assert not tcp_sockets(server.port, "0A")


def test_connections_queued_for_a_dead_worker_are_served(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", "--reuse-port", cwd=folder) as server:
        pids = stop_all(server)
        queued = [connect(server) for _ in range(60)]
        for sock in queued:
            sock.sendall(b"hello\n")
        os.kill(pids[0], signal.SIGKILL)
        for pid in pids[1:]:
            os.kill(pid, signal.SIGCONT)
        answers = [int(sock.makefile("rb").readline()) for sock in queued]
        assert len(answers) == 60
        assert pids[0] not in answers
        for sock in queued:
            sock.close()


@pytest.mark.slow
def test_connections_queued_for_a_busy_worker_are_accepted_by_siblings(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--reuse-port", cwd=folder) as server, connect(server) as blocked:
        busy = answer(blocked)
        blocked.sendall(b"block\n")
        said = blocked.makefile("rb")
        assert said.readline() == b"now\n"
        answers = {ask(server) for _ in range(30)}
        assert busy not in answers
        assert int(said.readline()) == busy


def test_scaling_keeps_every_socket_served(folder: Path) -> None:
    """Sockets stay open, whichever worker serves them, because the kernel goes on sharing connections out to all."""
    with run_server("service:handle", "-w", "3", "--reuse-port", cwd=folder) as server:
        fewer = [(signal.SIGTTOU, 2), (signal.SIGTTOU, 1)]
        for number, count in [*fewer, *((signal.SIGTTIN, count) for count in (2, 3, 4, 5))]:
            server.signal(number)
            wait_until(lambda count=count: len(server.worker_pids()) == count, what=f"{count} workers")
            for _ in range(40):
                ask(server)
            assert len(tcp_sockets(server.port, "0A")) == 3
        wait_until(lambda: ask(server) in server.worker_pids() and len({ask(server) for _ in range(60)}) == 5)


def test_a_reload_keeps_the_sockets(folder: Path) -> None:
    with run_server("service:handle", "-w", "2", "--reuse-port", cwd=folder) as server:
        old = set(server.worker_pids())
        for _ in range(3):
            count = server.stderr().count("reloaded:")
            server.signal(signal.SIGHUP)
            while server.stderr().count("reloaded:") == count:
                ask(server)
        assert len(tcp_sockets(server.port, "0A")) == 2
        assert not old & set(server.worker_pids())


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_second_server_on_the_port_is_refused(folder: Path, first: bool) -> None:
    """Otherwise it would silently get a part of the connections."""
    options = ["--reuse-port"] if first else []
    with run_server("service:handle", "-w", "2", *options, cwd=folder) as server:
        command = [sys.executable, "-m", "prefork", "serve", "service:handle", "--control", "off"]
        for more in (["--reuse-port"], []):
            done = subprocess.run(
                [*command, "--bind", f"127.0.0.1:{server.port}", *more],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 4
            assert "address already in use" in done.stderr
        assert subprocess.run([*command[:3], "check", "service:handle", "--reuse-port"], cwd=folder).returncode == 0
        assert {ask(server) for _ in range(60)} == set(server.worker_pids()), "nobody else got any"


def test_reuse_port_works_on_both_families(folder: Path) -> None:
    need("ss")
    with run_server("service:handle", "-w", "2", "--reuse-port", bind=[":0"], cwd=folder) as server:
        listed = subprocess.run(["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True).stdout
        assert len(listed.splitlines()) == 4
        with socket.create_connection(("::1", server.port), timeout=10) as sock:
            assert answer(sock) in server.worker_pids()
