"""The children of `fork_processes` share connections evenly by `add_accept_handler`; the caller does nothing for it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.support import kill_session, wait_until

PROGRAM = """
import asyncio, os, sys, prefork

first = prefork.bind_sockets(0, "127.0.0.1")
second = prefork.bind_sockets(0, "127.0.0.1")
print(first[0].getsockname()[1], second[0].getsockname()[1], flush=True)
task = prefork.fork_processes(int(sys.argv[1]))
kept = []

def answer(name):
    def handler(connection, address):
        connection.send(f"{name} {task} {os.getpid()}\\n".encode())
        kept.append(connection)
    return handler

async def main():
    for sock in first:
        prefork.add_accept_handler(sock, answer("first"))
    removers = [prefork.add_accept_handler(sock, answer("second")) for sock in second]
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(10, lambda: [remove() for remove in removers])
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def children(folder: Path, count: int) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "program.py", str(count)]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, [int(port) for port in process.stdout.readline().split()]
        finally:
            kill_session(process.pid)


def connect(port: int, stack: contextlib.ExitStack) -> list[str]:
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    return sock.makefile().readline().split()


def all_accept(port: int, count: int) -> None:
    """Wait until each child has answered."""
    seen = set()
    with contextlib.ExitStack() as stack:
        wait_until(lambda: (seen.add(connect(port, stack)[1]), len(seen) == count)[1])


@pytest.mark.parametrize("count", [2, 4])
def test_held_connections_are_shared_evenly(tmp_path: Path, count: int) -> None:
    with children(tmp_path, count) as (_, ports), contextlib.ExitStack() as stack:
        # Only those that came first serve until the others are there. Then they give them what these lag behind.
        wait_until(lambda: share_of_the_first(ports[0], count, 40, stack) <= 1.2)
        # A connection that is passed on counts when it is taken: for a moment two children are apart by a few.
        assert share_of_the_first(ports[0], count, 200, stack) <= 1.2


def share_of_the_first(port: int, count: int, connections: int, stack: contextlib.ExitStack) -> float:
    """Return the connections of the child that gets the maximum, as a multiple of the mean."""
    found = Counter(connect(port, stack)[1] for _ in range(connections))
    return max(found.values()) * count / connections


def test_each_connection_reaches_the_handler_of_its_socket(tmp_path: Path) -> None:
    with children(tmp_path, 3) as (_, ports), contextlib.ExitStack() as stack:
        all_accept(ports[0], 3)
        for number in range(60):
            assert connect(ports[number % 2], stack)[0] == ("second" if number % 2 else "first")


def test_a_killed_child_and_a_removed_handler_lose_no_connection(tmp_path: Path) -> None:
    with children(tmp_path, 3) as (_, ports), contextlib.ExitStack() as stack:
        all_accept(ports[0], 3)
        os.kill(int(connect(ports[0], stack)[2]), signal.SIGKILL)
        assert all(connect(ports[0], stack)[0] == "first" for _ in range(30))
        all_accept(ports[1], 3)
        os.kill(int(connect(ports[1], stack)[2]), signal.SIGUSR1)
        for number in range(60):
            assert connect(ports[number % 2], stack)[0] == ("second" if number % 2 else "first")
