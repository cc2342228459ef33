"""A stop as its client sees it: how far it is, and how the connections ended that were open when it began.

Reads the account of the fleet. Which requests are a stop, and when it ends, is decided elsewhere.
"""

from __future__ import annotations

from typing import Any

from ..core.account import REFUSALS, CloseReason, Counters
from ..core.progress import Progress, of_lame_duck, of_stop
from ..core.roster import Roster
from .workers import Workers

#: The reasons of the connections that a stop has cut off.
_ABORTED = (CloseReason.DRAIN, CloseReason.WORKER_DIED)


class Stopping:
    """Begins with the first request to stop. Times are monotonic seconds."""

    def __init__(self, roster: Roster, workers: Workers, pid: int) -> None:
        self._roster = roster
        self._workers = workers
        self._pid = pid
        self._began: float | None = None
        self._before: Counters | None = None
        """The counts of the moment when the drain began; None before that."""

    def begin(self, now: float) -> None:
        """Note when the stop was first requested."""
        if self._began is None:
            self._began = now

    def begin_drain(self) -> None:
        """Note what is open now, once."""
        if self._before is None:
            self._before = self._workers.readings.total()

    def progress(self, now: float) -> Progress:
        connections, drains_at = self._workers.readings.open(), self._roster.drains_at()
        if drains_at is not None:
            return of_lame_duck(connections, drains_at, now)
        return of_stop(self._roster, connections, 0 if self._before is None else self._before.open, now)

    def outcome(self, now: float, predecessor: int | None) -> dict[str, Any]:
        """Return the reply to a client that has waited for the end. `predecessor` drains by itself, and may go on."""
        total = self._workers.readings.total()
        before, after = (self._before or total).closed, total.closed
        ended = {reason: after[reason] - before[reason] for reason in CloseReason}
        aborted = sum(ended[reason] for reason in _ABORTED)
        refused = sum(ended[reason] for reason in REFUSALS)
        seconds = 0.0 if self._began is None else round(now - self._began, 3)
        return {
            "ok": True,
            "pid": self._pid,
            "closed": sum(ended.values()) - aborted - refused,
            "aborted": aborted,
            "seconds": seconds,
            "predecessor": predecessor,
        }
