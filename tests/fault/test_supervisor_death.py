"""The supervisor is killed, whenever and whatever its workers are doing: none outlives it, the addresses are free."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.proc import session_members, tcp_sockets
from helpers.support import kill_session, rounds, wait_until

from prefork.testing import run_server

#: A worker is gone within milliseconds; a busy machine may need a while to show it.
DEADLINE = 10.0

SERVICE = """
import asyncio, ctypes, os, signal, subprocess, time

async def handle(stream):
    async for line in stream:
        match line.strip():
            case b"spin":
                while True:
                    pass
            case b"sleep":
                time.sleep(3600)
            case b"sleep in C":
                ctypes.PyDLL(None).sleep(3600)
            case b"suspend":
                os.kill(os.getpid(), signal.SIGSTOP)
            case b"block signals":
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                time.sleep(3600)
            case b"program":
                child = subprocess.Popen(["sleep", "3600"])
                stream.write(b"%d\\n" % child.pid)
            case _:
                stream.write(line)

async def stay(stream):
    await asyncio.sleep(3600)
"""

#: What setuid does to a process, by other means: the kernel's signal at the parent's death is off.
UNTIED = "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0\n" + SERVICE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "untied.py").write_text(UNTIED)
    return tmp_path


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def assert_port_is_free(port: int) -> None:
    """At the first try; SO_REUSEADDR, as any server, because of connections that have ended."""
    socket.create_server(("127.0.0.1", port)).close()


def bury(leader: int) -> None:
    wait_until(lambda: not session_members(leader), DEADLINE, f"the end of {session_members(leader)}")


@contextmanager
def starting(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "3", "--bind", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            kill_session(process.pid)


@rounds(3, 15)
@pytest.mark.slow
def test_no_worker_outlives_a_supervisor_killed_during_its_start(folder: Path, rounds: int) -> None:
    """Before, while and after it binds and forks."""
    with run_server("service:handle", "-w", "1", cwd=folder) as server:
        port = server.port
        assert server.stop() == 0
    dice = random.Random(1)
    # How long a start takes here, to aim within.
    begun = time.monotonic()
    with starting(folder, port) as process:
        wait_until(lambda: len(session_members(process.pid)) == 4)
        length = time.monotonic() - begun
    for number in range(rounds):
        with starting(folder, port) as process:
            if number:
                time.sleep(length * dice.uniform(0.7, 1.3))
            else:
                # A start may take longer than it did: one round at least is not too early to mean anything.
                wait_until(lambda: len(session_members(process.pid)) > 1)
            process.kill()
            bury(process.pid)
            assert_port_is_free(port)


@pytest.mark.parametrize("module", ["service", "untied"])
def test_no_worker_outlives_a_supervisor_killed_while_they_serve(folder: Path, module: str) -> None:
    """With the kernel's parent-death signal, and with only the pipe."""
    with run_server(f"{module}:handle", "-w", "3", cwd=folder) as server:
        clients = [connect(server.port) for _ in range(30)]
        for sock in clients:
            sock.sendall(b"hello\n")
            assert sock.recv(100) == b"hello\n"
        server.signal(signal.SIGKILL)
        bury(server.pid)
        assert_port_is_free(server.port)
        for sock in clients:
            sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spin", "sleep", "sleep in C", "suspend", "block signals"])
def test_no_hung_worker_outlives_a_killed_supervisor(folder: Path, how: str) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server, connect(server.port) as sock:
        sock.sendall(how.encode() + b"\n")
        # It hangs as soon as it has read that.
        wait_until(lambda: not any(tcp_sockets(server.port, "01")))
        # The queue is not looked at any more.
        with connect(server.port) as unserved:
            unserved.sendall(b"anybody?\n")
            unserved.settimeout(0.3)
            with pytest.raises(TimeoutError):
                unserved.recv(100)
        server.signal(signal.SIGKILL)
        bury(server.pid)
        assert_port_is_free(server.port)


def test_no_draining_worker_outlives_a_killed_supervisor(folder: Path) -> None:
    with run_server("service:stay", "-w", "2", cwd=folder) as server, connect(server.port):
        server.signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in server.stderr())
        server.signal(signal.SIGKILL)
        bury(server.pid)
        assert_port_is_free(server.port)


def test_a_program_of_a_handler_ends_with_a_killed_supervisor(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", cwd=folder) as server, connect(server.port) as sock:
        sock.sendall(b"program\n")
        assert int(sock.recv(100))
        server.signal(signal.SIGKILL)
        bury(server.pid)
        assert_port_is_free(server.port)


def test_a_socket_file_left_by_a_killed_supervisor_does_not_block_the_next(folder: Path) -> None:
    path = folder / "socket"
    for _ in range(2):
        with run_server("service:handle", "-w", "1", bind=[f"unix:{path}"], cwd=folder) as server:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                sock.sendall(b"hello\n")
                assert sock.recv(100) == b"hello\n"
            server.signal(signal.SIGKILL)
            bury(server.pid)
            assert path.exists()
