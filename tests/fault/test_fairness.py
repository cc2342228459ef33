"""Who gets a connection: the worker that has the fewest, and never one that does not move. `make soak` has figures."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ready, serving, status
from support import wait_until

from prefork.testing import Server

SERVICE = """
import os, time

async def handle(stream):
    async for line in stream:
        if line == b"block\\n":
            await stream.send(b"%d\\n" % os.getpid())
            time.sleep(1.5)
        else:
            stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@contextlib.contextmanager
def connections(server: Server, count: int, pause: float = 0.0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
            sock.sendall(b"who\n")
            socks.append(sock)
            if pause:
                assert sock.recv(100)
                sock.sendall(b"who\n")
                time.sleep(pause)
        yield socks


def by_worker(socks: list[socket.socket]) -> Counter[int]:
    return Counter(int(sock.recv(100)) for sock in socks)


def imbalance(counts: Counter[int], workers: int) -> float:
    return max(counts.values()) / (counts.total() / workers)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("pause", [0.0, 0.001])
def test_open_connections_are_shared_evenly(folder: Path, loop: str, pause: float) -> None:
    """The bound is loose, as the machine is shared; the kernel alone gives one of four workers nearly all of a trickle,
    and 1.5 times the mean of a burst."""
    with serving(folder, "--loop", loop, workers=4) as server, connections(server, 200, pause) as socks:
        assert imbalance(by_worker(socks), 4) < 1.2
        worst = max(worker["open"] for worker in status(folder)["workers"])
        assert worst < 60


def test_short_connections_are_shared_evenly(folder: Path) -> None:
    with serving(folder, workers=4) as server:
        counts: Counter[int] = Counter()
        for _ in range(400):
            with connections(server, 1) as socks:
                counts += by_worker(socks)
        assert imbalance(counts, 4) < 1.3


def test_a_worker_that_was_replaced_catches_up(folder: Path) -> None:
    """It has none, so it gets what comes, until it has as many as the others."""
    with serving(folder, workers=2) as server, connections(server, 40) as first:
        victim, survivor = by_worker(first)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(ready(folder)) == 2)
        with connections(server, 20, 0.001) as second:
            counts = by_worker(second)
            assert victim not in counts
            # It has twenty; two of the newcomers may have come before the new one was known.
            assert counts[survivor] <= 5, counts


@pytest.mark.parametrize("how", ["blocked", "stopped"])
def test_a_worker_that_does_not_move_hoards_nothing(folder: Path, how: str) -> None:
    """It has the fewest, and whoever waited for it would wait for long: at most a batch of eight does."""
    with serving(folder, workers=4) as server:
        with connections(server, 1) as (sock,):
            pid = int(sock.recv(100))
            if how == "stopped":
                os.kill(pid, signal.SIGSTOP)
            else:
                sock.sendall(b"block\n")
                assert int(sock.recv(100)) == pid
            assert len(late(server, pid)) <= 8
            if how == "stopped":
                os.kill(pid, signal.SIGCONT)
        assert server.stop() == 0


def late(server: Server, pid: int) -> list[socket.socket]:
    """Those of a crowd that have not been answered while the worker `pid` did not move; the rest was, by others."""
    begun = time.monotonic()
    found = []
    with connections(server, 300) as socks:
        for sock in socks:
            sock.settimeout(max(0.01, begun + 1.2 - time.monotonic()))
            try:
                assert int(sock.recv(100)) != pid
            except TimeoutError:
                found.append(sock)
    return found
