"""A connection that was accepted is served, although the worker that it was passed to dies, stops or is hostile."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.servers import ready, serving, status
from helpers.support import wait_until

from prefork.testing import Server

SERVICE = """
import array, contextlib, os, socket

def inboxes():
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=os.dup(int(name)))
            if sock.type == socket.SOCK_SEQPACKET:
                yield sock

async def handle(stream):
    async for line in stream:
        if line == b"shutdown\\n":
            for sock in inboxes():
                sock.shutdown(socket.SHUT_RDWR)
        elif line == b"flood\\n":
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
            for sock in inboxes():
                with contextlib.suppress(OSError):
                    while True:
                        sock.sendmsg([b"x"], rights, socket.MSG_DONTWAIT)
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def connect(server: Server) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(b"who\n")
    return sock


@contextlib.contextmanager
def connections(server: Server, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server)) for _ in range(count)]


def answers(socks: list[socket.socket]) -> Counter[int]:
    """Return how many connections each process has answered; all must be."""
    return Counter(int(sock.recv(100)) for sock in socks)


def unanswered(socks: list[socket.socket]) -> list[socket.socket]:
    """Return those that were not answered within a time in which a worker that runs would have."""
    end = time.monotonic() + 0.3
    waiting = list(socks)
    while waiting and (left := end - time.monotonic()) > 0:
        done, _, _ = select.select(waiting, [], [], left)
        waiting = [sock for sock in waiting if sock not in done]
    return waiting


def test_connections_go_to_the_worker_with_the_fewest(folder: Path) -> None:
    with serving(folder, workers=4) as server, contextlib.ExitStack() as stack:
        found: Counter[int] = Counter()
        for _ in range(100):
            # One after the other: what is on its way is counted too, but later than what has arrived.
            found += answers([stack.enter_context(connect(server))])
        assert max(found.values()) <= 27
        assert max(worker["open"] for worker in status(folder)["workers"]) <= 27
        assert sum(worker["accepted"] for worker in status(folder)["workers"]) == 100, "each is counted once"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGCONT])
def test_what_waits_for_a_stopped_worker_is_served_by_another(folder: Path, end: signal.Signals) -> None:
    """At most 8 wait for it at first."""
    with serving(folder, workers=3) as server:
        stopped = server.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            with connections(server, 60) as socks:
                assert len(unanswered(socks)) <= 8
                found = answers(socks)
                assert found.total() == 60
                assert found[stopped] == 0
        finally:
            os.kill(stopped, end)
        wait_until(lambda: len(ready(folder)) == 3)


def test_what_waits_for_a_worker_that_is_killed_is_served(folder: Path) -> None:
    with serving(folder, workers=2) as server:
        stopped = server.worker_pids()[0]
        os.kill(stopped, signal.SIGSTOP)
        with connections(server, 20) as socks:
            os.kill(stopped, signal.SIGKILL)
            found = answers(socks)
            assert found.total() == 20
            assert found[stopped] == 0
        wait_until(lambda: len(ready(folder)) == 2)


@pytest.mark.parametrize("attack", [b"shutdown\n", b"flood\n"])
def test_a_worker_that_attacks_the_inboxes_stops_no_connection(folder: Path, attack: bytes) -> None:
    with serving(folder, workers=3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
            sock.sendall(attack)
            assert sock.recv(100)
        with connections(server, 60) as socks:
            assert answers(socks).total() == 60
        assert len(ready(folder)) == 3
        assert server.stderr().count("inbox of worker") <= 2 * 3, "the log is not flooded"
