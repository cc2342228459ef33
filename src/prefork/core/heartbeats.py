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
    """Finds workers whose heartbeat is older than `timeout` seconds: within half a second after it became so."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._confirm = min(CONFIRM, timeout / 8)
        self._late = min(LATE, timeout / 4)
        self._due: float | None = None
        self._suspects: frozenset[int] = frozenset()

    def due(self, now: float) -> float:
        """When to look next, on the clock of `now`."""
        return now if self._due is None else self._due

    def look(self, now: float) -> bool:
        """Whether it is time to look. Has to be followed by `judge` if it says so."""
        if self._due is None:
            # Nobody was there to be looked at; this is no pause.
            self._due = now + self._confirm
            return False
        if now > self._due + self._late:
            self._suspects = frozenset()
            self._due = now + min(GRACE, self.timeout)
            return False
        return now >= self._due

    def rest(self) -> None:
        """Nobody is there who could be looked at."""
        self._due = None
        self._suspects = frozenset()

    def judge(self, ages: Mapping[int, float], now: float) -> list[int]:
        """The workers that hang: stale in this look and the one before. `ages` is seconds by worker; who has no
        heartbeat yet is missing."""
        stale = frozenset(worker for worker, age in ages.items() if age > self.timeout)
        hung = stale & self._suspects
        self._suspects = stale - hung
        oldest = max((age for worker, age in ages.items() if worker not in stale), default=0.0)
        # Nobody can be stale before `timeout - oldest` has passed.
        quiet = min(INTERVAL, self.timeout - oldest + 0.01)
        self._due = now + (self._confirm if self._suspects else max(self._confirm, quiet))
        return sorted(hung)
