"""How many connections each worker gets and what that costs in time, beside a server in which the kernel decides."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .. import proc
from ..report import Row, Verdict, percentiles
from ..scenario import Context
from ..servers import other, serving

WORKERS = (2, 4, 16)
ROUNDS = 5
#: The most that a worker may have, over the mean.
TARGET = 1.03
#: How much later the first answer may come than if only the kernel decides, and a part of a millisecond, below which
#: the scheduler decides.
LATER, LATER_MS = 1.4, 0.25
BLOCKED_ROUNDS = 20
#: Connections that may wait for a worker that stands still: what its inbox holds.
MAX_WAITING = 8
#: Seconds that a worker stands still, and when an answer counts as delayed by that.
BLOCKED, DELAYED = 1.0, 0.7
#: Seconds of work for each request, clients, and requests of each, for the cost in time of fairness.
WORK, CLIENTS, REQUESTS = 0.01, 20, 100


@dataclass
class Observed:
    """Connections by the pid of the worker that has them, and the seconds until each was answered."""

    by_worker: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    """Microseconds of CPU time of the workers for each connection."""

    def imbalance(self, workers: int) -> float:
        """The most that a worker has over the mean of all."""
        return max(self.by_worker.values()) / (self.by_worker.total() / workers)


# --- the ways in which connections come -------------------------------------------------------------------------------

Way = Callable[[int, int, Observed], list[socket.socket]]


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 30)


def _hear(sock: socket.socket, begun: float, seen: Observed) -> None:
    seen.by_worker[int(sock.recv(100))] += 1
    seen.seconds.append(time.perf_counter() - begun)


def _trickle(port: int, count: int, seen: Observed) -> list[socket.socket]:
    socks = []
    for _ in range(count):
        begun = time.perf_counter()
        socks.append(_connect(port))
        socks[-1].sendall(b"who\n")
        _hear(socks[-1], begun, seen)
        time.sleep(max(0.0, 0.001 - (time.perf_counter() - begun)))
    return socks


def _together(port: int, count: int, seen: Observed) -> list[socket.socket]:
    begun = time.perf_counter()
    socks = [_connect(port) for _ in range(count)]
    for sock in socks:
        sock.sendall(b"who\n")
    for sock in socks:
        _hear(sock, begun, seen)
    return socks


def _bursts(port: int, count: int, seen: Observed) -> list[socket.socket]:
    socks = []
    for _ in range(count // 50):
        socks += _together(port, 50, seen)
        time.sleep(0.02)
    return socks


def _short(port: int, count: int, seen: Observed) -> list[socket.socket]:
    for _ in range(count):
        begun = time.perf_counter()
        with _connect(port) as sock:
            sock.sendall(b"who\n")
            _hear(sock, begun, seen)
    return []


#: Name, way, connections, and the target for the imbalance.
WAYS: tuple[tuple[str, Way, int, float], ...] = (
    ("a connection each millisecond", _trickle, 1000, TARGET),
    ("bursts of 50", _bursts, 1000, TARGET),
    ("1,000 at once", _together, 1000, TARGET),
    ("short ones, one after the other", _short, 3000, TARGET),
)


# --- the scenario -----------------------------------------------------------------------------------------------------


def run(context: Context) -> list[Row]:
    """Each number of workers and each way in turn; then one that is blocked, and work that takes long."""
    rows = []
    for workers in WORKERS:
        with serving("soak.services.sharing:handle", workers=workers) as fleet, _plain(workers) as plain:
            ours = (fleet.port, list(fleet.wait_ready(workers)))
            for name, way, count, target in WAYS:
                rows.append(_balance(context, workers, (ours, plain), (name, way, context.count(count, 200), target)))
                context.say(f"fairness: {workers} workers, {name}: {rows[-1].figure}")
    return [*rows, _blocked(context), _busy(context)]


@contextlib.contextmanager
def _plain(workers: int) -> Iterator[tuple[int, list[int]]]:
    """The port of the other server, and its workers."""
    with other("plain", str(workers)) as (pid, port):
        proc.wait_until(lambda: len(proc.children(pid)) == workers, 20.0, "workers of the other server")
        yield port, list(proc.children(pid))


def _observe(server: tuple[int, list[int]], way: Way, count: int) -> Observed:
    port, workers = server
    seen = Observed()
    before = _cpu(workers)
    for sock in way(port, count, seen):
        sock.close()
    # The next round begins when no worker has a connection left.
    time.sleep(0.2)
    seen.cpu = (_cpu(workers) - before) / count / 1e3
    return seen


def _cpu(pids: list[int]) -> int:
    """Nanoseconds of CPU time of these processes (schedstat)."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)


def _balance(
    context: Context,
    workers: int,
    servers: tuple[tuple[int, list[int]], tuple[int, list[int]]],
    what: tuple[str, Way, int, float],
) -> Row:
    name, way, count, target = what
    # In turn, so that whatever else the machine does falls upon both.
    pairs = [[_observe(server, way, count) for server in servers] for _ in range(context.count(ROUNDS, 2))]
    ours, others = ([pair[i] for pair in pairs] for i in (0, 1))
    worst = max(each.imbalance(workers) for each in ours)
    usual = statistics.median(each.imbalance(workers) for each in others)
    means = [[statistics.mean(e.seconds) * 1e3 for e in some] for some in (ours, others)]
    tails = [[percentiles(e.seconds)["p99"] * 1e3 for e in some] for some in (ours, others)]
    cpu = [statistics.median(each.cpu for each in some) for some in (ours, others)]
    mine, theirs = (statistics.median(some) for some in tails)
    no_worse = mine <= max(LATER * theirs, theirs + LATER_MS)
    medians = [statistics.median(each) for each in (*means, *tails)]
    return Row(
        "fairness",
        f"W={workers}, {name}: most connections over the mean",
        f"{worst:.3f} at worst (by the kernel only: {usual:.2f}); answered after {medians[0]:.2f} ms, "
        f"p99 {medians[2]:.2f} (by the kernel only: {medians[1]:.2f}, p99 {medians[3]:.2f}); "
        f"{cpu[0]:.0f} us of CPU (by the kernel only: {cpu[1]:.0f})",
        count * len(pairs),
        f"<= {target:.2f}, p99 <= {LATER:g} times, or {LATER_MS:g} ms later",
        Verdict.GOOD if worst <= target and no_worse else Verdict.BAD,
        details=(
            f"W={workers}, {name}: p99 of each round {_list(tails[0])} ms; by the kernel only {_list(tails[1])} ms",
        ),
    )


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _blocked(context: Context) -> Row:
    """Block one worker of 4, and count the connections that this delays."""
    rounds, most = context.count(BLOCKED_ROUNDS, 2), 0
    for _ in range(rounds):
        with serving("soak.services.sharing:handle", workers=4) as fleet, _connect(fleet.port) as stop:
            stop.sendall(b"block %g\n" % BLOCKED)
            stop.recv(100)
            seen = Observed()
            for sock in _together(fleet.port, 1000, seen):
                sock.close()
            most = max(most, sum(each > DELAYED for each in seen.seconds))
    return Row(
        "fairness",
        f"W=4, one is blocked for {BLOCKED:g} s, 1,000 connections at once: those that wait for it",
        f"{most} at most",
        rounds * 1000,
        f"<= {MAX_WAITING}",
        Verdict.GOOD if most <= MAX_WAITING else Verdict.BAD,
    )


def _busy(context: Context) -> Row:
    """Have more clients than workers, all of which work: one at a busy worker waits for a whole piece of work."""
    with serving("soak.services.sharing:handle", workers=4) as fleet, _plain(4) as plain:
        ours, others = (_work(port, context.count(REQUESTS, 10)) for port in (fleet.port, plain[0]))
    spread, other_spread = statistics.pstdev(ours), statistics.pstdev(others)
    worst = max(ours) / statistics.mean(ours)
    good = spread <= 1.5 * other_spread and worst <= 3.0
    return Row(
        "fairness",
        f"W=4, {CLIENTS} clients, {WORK * 1000:g} ms of work for each connection: standard deviation of the time",
        f"{spread * 1e3:.1f} ms, at most {worst:.1f} times the mean (by the kernel only: {other_spread * 1e3:.1f} ms, "
        f"{max(others) / statistics.mean(others):.1f} times)",
        len(ours),
        "<= 1.5 of the kernel's; <= 3 times",
        Verdict.GOOD if good else Verdict.BAD,
    )


def _work(port: int, requests: int) -> list[float]:
    seconds: list[float] = []

    def client() -> None:
        for _ in range(requests):
            begun = time.perf_counter()
            with _connect(port) as sock:
                sock.sendall(b"work %g\n" % WORK)
                sock.recv(100)
            seconds.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds
