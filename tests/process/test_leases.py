"""`prefork.lease`: one worker of a server has it, through deaths and reloads, as a service and as a program see it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import wait_until

from prefork.testing import Server, run_program

#: Each worker waits for the lease, and answers a line by what it has.
PROGRAM = """
import asyncio, os, prefork, threading

lease = prefork.lease("scheduler")

async def schedule():
    async with lease:
        await asyncio.Event().wait()

def refusal():
    more = [prefork.lease(f"more {number}") for number in range(64)]
    try:
        for each in more:
            each.acquire(0.0 if each is more[-1] else 5.0)
    except RuntimeError as exc:
        return str(exc)
    finally:
        for each in more:
            each.release()
    return "none"

async def handle(reader, writer):
    word = (await reader.readline()).strip()
    writer.write((f"{os.getpid()} {lease.held}" if word == b"held" else refusal()).encode() + b"\\n")
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    scheduler = asyncio.create_task(schedule())
    async with server:
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "program.py").write_text(PROGRAM)
    with run_program("program.py", options=("-w", "2", "--drain-timeout", "5"), cwd=tmp_path) as server:
        yield server


def ask(server: Server, word: str = "held") -> str:
    with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
        sock.sendall(word.encode() + b"\n")
        return sock.makefile().readline().strip()


def holder(server: Server) -> int | None:
    """Return the worker that says it has the lease; None if none of two that are asked at once does."""
    with contextlib.suppress(OSError):
        for pid, held in (ask(server).split(), ask(server).split()):
            if held == "True":
                return int(pid)
    return None


def test_another_worker_has_the_lease_once_its_holder_is_dead(server: Server) -> None:
    wait_until(lambda: holder(server), 30)
    first = holder(server)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: holder(server) not in (None, first), 30)


def test_a_new_worker_has_the_lease_after_a_reload(server: Server) -> None:
    wait_until(lambda: holder(server), 30)
    old = set(server.worker_pids())
    server.signal(signal.SIGHUP)
    wait_until(lambda: holder(server) not in (None, *old), 60)
    assert server.stop() == 0


def test_a_worker_with_too_many_leases_is_told_why(server: Server) -> None:
    assert "64 leases at once" in ask(server, "refusal")
