"""A worker that has gone mad, or was taken over, does what it can to the rest: it is its own end at most."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from servers import command, cpu_seconds, serving, status
from support import wait_until

SERVICE = """
import contextlib, fcntl, json, os, socket, threading

def pipes():
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            pipe = os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
            if fd > 2 and pipe and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                yield fd

def say(data):
    for fd in pipes():
        os.write(fd, data)

def flood(fd):
    data = json.dumps({"spent": "x" * 3000}).encode() + b"\\n"
    while True:
        with contextlib.suppress(OSError):
            os.write(fd, data)

def deaf():
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    sock.shutdown(socket.SHUT_RDWR)

async def handle(stream):
    async for line in stream:
        word, _, rest = line.strip().partition(b" ")
        if word == b"deep":
            say(b'{"a":' * int(rest) + b"\\n")
        elif word == b"forge":
            say(json.dumps({"unable": "a\\nFORGED LINE \\x1b[31m"}).encode() + b"\\n")
        elif word == b"flood":
            for fd in pipes():
                threading.Thread(target=flood, args=(fd,), daemon=True).start()
        elif word == b"deaf":
            deaf()
        stream.write(line)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def tell(address: str, line: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as sock:
        sock.sendall(line)
        return sock.makefile("rb").readline()


@pytest.mark.parametrize("depth", [100, 800, 4000, 12000])
def test_nested_deeply(folder: Path, depth: int) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"deep %d\n" % depth)
        assert status(folder)["state"] == "serving"
        assert server.stop() == 0
        assert "Traceback" not in server.stderr()


def test_lines_that_would_be_somebody_elses(folder: Path) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"forge\n")
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.stderr().count("restarting") == 2)
        assert "\nFORGED" not in server.stderr()
        assert "\x1b" not in server.stderr()


def test_talk_without_end_costs_nothing(folder: Path) -> None:
    with serving(folder) as server:
        tell(server.addresses[0], b"flood\n")
        before, started = cpu_seconds(server.pid), time.monotonic()
        wait_until(lambda: time.monotonic() > started + 1.5)
        # Read at its full speed, it would keep a core busy.
        assert cpu_seconds(server.pid) - before < 0.5
        assert len(server.stderr()) < 4000
        assert command(folder, "status").returncode == 0
        assert server.stop() == 0


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
def test_a_listening_socket_that_was_shut_down_listens_again(folder: Path, bind: str) -> None:
    """Shared by all of them, it is dead for all of them; also the port that the kernel had chosen stays what it is."""
    with serving(folder, bind=[bind, "127.0.0.1:0"]) as server:
        tell(server.addresses[0], b"deaf\n")
        for address in server.addresses:
            wait_until(lambda address=address: f"{address} had been shut down" in server.stderr(), 20)
            wait_until(lambda address=address: _answers(address), 20, f"{address} answers")
        assert server.stop() == 0


def _answers(address: str) -> bool:
    try:
        return tell(address, b"hello\n") == b"hello\n"
    except OSError:
        return False
