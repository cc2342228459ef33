"""Who hangs: when to look at the heartbeats of the workers, and what their ages mean.

Pure. A healthy server is looked at every two seconds; one look never condemns anybody.
"""

from __future__ import annotations

from collections.abc import Mapping

#: The longest time between looks, in seconds: a pause that falls between two of them is not noticed.
INTERVAL = 2.0
#: Seconds from the look that finds a stale heartbeat to the one that confirms it.
CONFIRM = 0.25
#: A look that comes so many seconds late was kept from us: the machine slept, or our group was frozen or starved. Our
#: clock ran and theirs did not, so nobody is judged by it.
LATE = 0.5
#: Seconds that the workers have after such a pause, unless the timeout is shorter.
GRACE = 5.0


class Watch:
    """Finds workers whose heartbeat has been stale for at most half a second."""

    def __init__(self) -> None:
        self._confirm = CONFIRM
        self._due: float | None = None
        self._suspects: frozenset[int] = frozenset()

    def due(self, now: float) -> float:
        """When to look next, on the clock of `now`."""
        return now if self._due is None else self._due

    def look(self, now: float, timeout: float) -> bool:
        """Whether it is time to look. Has to be followed by `judge` if it says so. `timeout` is the shortest one."""
        self._confirm = min(CONFIRM, timeout / 8)
        if self._due is None:
            # Nobody was there to be looked at; this is no pause.
            self._due = now + self._confirm
            return False
        if now > self._due + min(LATE, timeout / 4):
            self._suspects = frozenset()
            self._due = now + min(GRACE, timeout)
            return False
        return now >= self._due

    def rest(self) -> None:
        """Nobody is there who could be looked at."""
        self._due = None
        self._suspects = frozenset()

    def judge(self, left: Mapping[int, float], now: float) -> list[int]:
        """The workers that hang: stale in this look and the one before. `left` is, by worker, the seconds after which
        its heartbeat is stale, less than 0 if it is; who has no heartbeat yet is missing."""
        stale = frozenset(worker for worker, seconds in left.items() if seconds < 0)
        hung = stale & self._suspects
        self._suspects = stale - hung
        # Nobody else can be stale before.
        next_stale = min((seconds for worker, seconds in left.items() if worker not in stale), default=INTERVAL)
        quiet = min(INTERVAL, next_stale + 0.01)
        self._due = now + (self._confirm if self._suspects else max(self._confirm, quiet))
        return sorted(hung)
