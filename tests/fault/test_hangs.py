"""A worker whose loop is blocked is found, logged and replaced; a healthy one is never killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from helpers.support import wait_until

from prefork.testing import Server, run_server

SERVICE = """
import asyncio, ctypes, os, time

def grind():
    while True:
        pass

async def handle(stream):
    async for line in stream:
        word = line.strip()
        if word == b"sleep":
            time.sleep(60)
        elif word == b"spin":
            grind()
        elif word == b"hold the lock":
            # A C function that keeps the interpreter's lock.
            ctypes.PyDLL(None).sleep(60)
        elif word == b"stop":
            os.kill(os.getpid(), 19)
        elif word == b"busy":
            # Much to do, but the loop runs.
            end = time.monotonic() + 3
            while time.monotonic() < end:
                time.sleep(0.05)
                await asyncio.sleep(0)
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def ask(server: Server, word: bytes) -> bytes:
    with connect(server) as sock, sock.makefile("rb") as file:
        sock.sendall(word + b"\n")
        return file.readline()


@pytest.mark.parametrize("how", ["sleep", pytest.param("spin", marks=pytest.mark.slow), "hold the lock", "stop"])
def test_a_hung_worker_is_logged_with_its_stacks_and_replaced(folder: Path, how: str) -> None:
    with run_server("service:handle", "-w", "2", "--hang-timeout", "1", cwd=folder) as server:
        before = set(server.worker_pids())
        with connect(server) as sock:
            sock.sendall(how.encode() + b"\n")
            wait_until(lambda: "hangs: its event loop has been blocked for " in server.stderr(), what="the verdict")
            wait_until(
                lambda: len(server.worker_pids()) == 2 and len(before & set(server.worker_pids())) == 1,
                what="the replacement",
            )
        text = server.stderr()
        assert text.count("hangs: its event loop") == 1
        assert "died: signal 9 (killed by --hang-timeout), 1 connection with it, restarting" in text
        if how in ("sleep", "spin"):
            assert "stacks of worker" in text
            assert "service.py" in text
            assert ("in grind" if how == "spin" else "in handle") in text
        assert {int(ask(server, b"hello")) for _ in range(10)} <= set(server.worker_pids())
        assert server.stop() == 0


@pytest.mark.slow
def test_a_busy_worker_whose_loop_turns_is_left_alone(folder: Path) -> None:
    with run_server("service:handle", "-w", "1", "--hang-timeout", "1", cwd=folder) as server:
        before = server.worker_pids()
        assert int(ask(server, b"busy")) == before[0]
        assert server.worker_pids() == before
        assert "hangs" not in server.stderr()


@pytest.mark.slow
def test_a_freeze_of_the_whole_server_kills_no_worker(folder: Path) -> None:
    """As in a suspended machine or a frozen container, whichever process wakes first."""
    with run_server("service:handle", "-w", "2", "--hang-timeout", "0.8", cwd=folder) as server:
        before = server.worker_pids()
        for turn in range(4):
            everybody = [server.pid, *before]
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(1.2)
            for pid in everybody if turn % 2 else reversed(everybody):
                os.kill(pid, signal.SIGCONT)
            assert int(ask(server, b"hello")) in before
            time.sleep(0.3)
        assert server.worker_pids() == before
        assert "hangs" not in server.stderr()


def test_a_worker_that_does_not_boot_in_time_ends_the_start(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ntime.sleep(60)\nasync def handle(stream): ...\n")
    with run_server("slow:handle", "-w", "1", "--boot-timeout", "0.5", cwd=folder, wait_ready=False) as server:
        assert server.wait(20) == 3
        assert "not ready after 0.5 s (--boot-timeout)" in server.stderr()
