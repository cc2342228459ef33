"""The wall clock jumps: no deadline fires or is missed, as every one of them is on the monotonic clock."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from helpers.proc import tcp_sockets
from helpers.support import need, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import asyncio, os, time

if os.path.exists("broken"):
    os._exit(1)

async def handle(stream):
    async for line in stream:
        stream.write(b"%d %d\\n" % (time.time(), os.getpid()))

async def slow(stream):
    await stream.wait_draining()
    await asyncio.sleep(1)
    await stream.send(b"goodbye\\n")
"""
HOUR, DAY = 3600, 86400
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class WallClock:
    """What `time.time()` says in the server, set by way of a file that libfaketime reads."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self._fresh = folder / "clock.new"
        self.jump(0)

    def jump(self, offset: int) -> None:
        self._fresh.write_text(f"{offset:+d}\n")
        self._fresh.rename(self._file)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    if not LIBRARIES:
        need("faketime")
    (tmp_path / "app.py").write_text(SERVICE)
    return WallClock(tmp_path)


def ask(sock: socket.socket) -> tuple[int, int]:
    """What the server takes for the time, and the pid of the worker."""
    sock.sendall(b"?\n")
    now, pid = sock.recv(100).split()
    return int(now), int(pid)


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def test_a_jump_of_the_clock_ends_no_connection_and_no_worker(clock: WallClock, tmp_path: Path) -> None:
    with run_server("app:handle", "-w", "2", cwd=tmp_path, env=clock.environment()) as server:
        workers = server.worker_pids()
        clients = [connect(server) for _ in range(20)]
        before, _ = ask(clients[0])
        for offset in (HOUR, -HOUR, -DAY, 30 * DAY, 0):
            clock.jump(offset)
            seen = ask(clients[0])[0] - before
            assert abs(seen - offset) < 60, "the server does see the jump"
            for sock in clients:
                assert ask(sock)[1] in workers
            with connect(server) as fresh:
                assert ask(fresh)[1] in workers
        assert server.worker_pids() == workers
        assert " warning " not in server.stderr()
        for sock in clients:
            sock.close()
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("offset", [HOUR, -DAY])
def test_a_jump_of_the_clock_does_not_change_the_length_of_a_drain(
    clock: WallClock, tmp_path: Path, offset: int
) -> None:
    with run_server("app:slow", "-w", "1", "--drain-timeout", "20", cwd=tmp_path, env=clock.environment()) as server:
        with connect(server) as sock, connect(server):
            wait_until(lambda: tcp_sockets(server.port, "0A") == [0])
            server.signal(signal.SIGTERM)
            wait_until(lambda: "stopping" in server.stderr())
            clock.jump(offset)
            assert sock.makefile("rb").read() == b"goodbye\n"
        assert server.wait() == 0
        assert "closed, none aborted" in server.stderr()


@pytest.mark.slow
@pytest.mark.parametrize("offset", [-DAY])
def test_a_jump_of_the_clock_does_not_move_a_restart(clock: WallClock, tmp_path: Path, offset: int) -> None:
    with run_server("app:handle", "-w", "2", cwd=tmp_path, env=clock.environment()) as server:
        (tmp_path / "broken").touch()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: len(re.findall(r"restarting in [12]\.\d s", server.stderr())) == 2, 20)
        clock.jump(offset)
        (tmp_path / "broken").unlink()
        wait_until(lambda: len(server.worker_pids()) == 2, 20, "the replacement")
        assert server.stop() == 0
