"""Workers that hang in four ways are found and killed in time, and their siblings are left alone."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

from .. import proc, tally
from ..errors import HarnessError
from ..report import Row, Verdict, in_words
from ..scenario import Context
from ..servers import Fleet, serving
from . import freezes

WORKERS = 4
HANGS = 10
TIMEOUT = 2.0
#: Seconds beyond the timeout until the worker has been found.
TARGET = 0.5
#: Hangs of one server: a slot's third death in a row is the last that is answered at once.
PER_SERVER = 2 * WORKERS

WAYS = {
    "sleep": "time.sleep",
    "spin": "while True: pass",
    "hold": "a C call that holds the GIL",
    "lock": "a deadlocked lock",
}


@dataclass
class _Times:
    """Seconds from the moment at which the handler began to hang."""

    found: list[float] = field(default_factory=list)
    """Until the supervisor's verdict was in the log."""
    gone: list[float] = field(default_factory=list)
    """Until the process had ended: it was asked for its stacks in between."""
    others: int = 0
    """Siblings that were killed."""


def run(context: Context) -> list[Row]:
    """One hang after the other for each way; then the freezes."""
    rows = [_measure(context, way, words) for way, words in WAYS.items()]
    return [*rows, freezes.measure(context)]


def _measure(context: Context, way: str, words: str) -> Row:
    hangs = context.count(HANGS)
    times = _Times()
    while len(times.gone) < hangs:
        with serving("soak.services.hanging:service", "--hang-timeout", str(TIMEOUT), workers=WORKERS) as fleet:
            for _ in range(min(hangs - len(times.gone), PER_SERVER)):
                _one_hang(fleet, way, times)
    context.say(f"hangs: {words}: found after {in_words(times.found, 's', 1)}")
    late = sum(each > TIMEOUT + TARGET for each in times.found)
    good = not late and not times.others
    return Row(
        "hangs",
        f"{words}: found (--hang-timeout {TIMEOUT:g})",
        f"after {in_words(times.found, 's', 1)}; {late} late; gone after at most {max(times.gone):.2f} s",
        hangs,
        f"all <= {TIMEOUT + TARGET:g} s",
        Verdict.GOOD if good else Verdict.BAD,
        details=(f"{way}: process gone after {in_words(times.gone, 's', 1)}; {times.others} siblings killed",),
    )


def _one_hang(fleet: Fleet, way: str, times: _Times) -> None:
    before = set(fleet.wait_ready(WORKERS))
    marked = {pid for pid, counts in tally.read(fleet.tallies).items() if counts.mark}
    with socket.create_connection(("127.0.0.1", fleet.port), 30) as sock:
        sock.sendall(f"{way}\n".encode())
        found: dict[int, int] = {}

        def hangs() -> bool:
            counts = tally.read(fleet.tallies)
            found.update({pid: each.mark for pid, each in counts.items() if each.mark and pid not in marked})
            return bool(found)

        proc.wait_until(hangs, 10, f"a worker that hangs ({way})")
        (victim, mark), *_ = found.items()
        _watch(fleet, victim, mark / 1e9, times)
    after = set(fleet.wait_ready(WORKERS))
    times.others += len(before - after - {victim})


def _watch(fleet: Fleet, victim: int, since: float, times: _Times) -> None:
    """Wait for the verdict in the log, then for the end of the process."""
    verdict = f"(pid {victim}) hangs: "
    end = since + TIMEOUT + 10
    while verdict not in fleet.server.stderr():
        if time.monotonic() > end:
            raise HarnessError(f"worker {victim} has not been found to hang; the server logged:\n{fleet.tail()}")
        time.sleep(0.005)
    times.found.append(time.monotonic() - since)
    ended = proc.ended_at([victim], 10)
    times.gone.append(ended.get(victim, time.monotonic()) - since)
