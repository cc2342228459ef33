"""How far a reload, an upgrade or a stop is, in words and numbers for the client that waits for it.

Pure: the roster and the time go in. What is done about it is decided elsewhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .rolling_restart import Purpose
from .roster import Roster
from .states import Worker, WorkerState


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` steps; `text` says what it waits for."""

    done: int
    total: int
    text: str
    left: int | None = None
    """Seconds until it ends in any case, if that is known."""

    def describe(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def of_reload(roster: Roster) -> Progress:
    """Return how many slots have their new worker, and which one the reload waits for."""
    total, rolling = len(roster.slots), roster.rolling
    if rolling is None:
        return Progress(total, total, "reloaded")
    if rolling.purpose is Purpose.RECYCLE:
        return Progress(0, total, "a worker that is recycled is replaced first")
    successor = None if rolling.successor is None else roster.workers.get(rolling.successor)
    done = max(0, total - len(rolling.remaining) - (successor is not None))
    if successor is not None:
        missing = f", not ready: {successor.missing}" if successor.missing else ""
        return Progress(done, total, f"worker {successor.slot} (pid {successor.pid}) starts{missing}")
    accepting = [each for each in rolling.retired if each in roster.workers and roster.workers[each].accepting]
    return Progress(done, total, f"{_count(len(accepting), 'old worker')} to stop accepting")


def of_lame_duck(connections: int, drains_at: float, now: float) -> Progress:
    """Return how long a server that is to stop still accepts, if that number of `connections` is open."""
    return Progress(0, 0, f"lame duck: {_count(connections, 'connection')} open", max(0, round(drains_at - now)))


def of_stop(roster: Roster, connections: int, before: int, now: float) -> Progress:
    """Return how many of the connections `before` the stop have ended, if that number of `connections` is open."""
    draining = [each for each in roster.workers.values() if each.state is WorkerState.DRAINING]
    ends = [each.drain_until for each in draining if each.drain_until is not None]
    left = max(0, round(max(ends) - now)) if ends and connections else None
    total = max(before, connections)
    text = f"{_count(connections, 'connection')} open" if connections else _ending(list(roster.workers.values()))
    return Progress(total - connections, total, text, left)


def _ending(workers: list[Worker]) -> str:
    return f"{_count(len(workers), 'worker')} to exit" if workers else "no worker is left"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
