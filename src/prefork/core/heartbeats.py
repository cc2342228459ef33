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
#: clock ran and theirs did not, so nobody is judged by it alone.
LATE = 0.5
#: Seconds that the workers have after such a pause, unless the timeout is shorter.
GRACE = 5.0
#: Late looks in a row, with such a time after each, between which a worker has never beaten: then it hangs, and the
#: machine is slow besides.
LATE_LOOKS = 3
#: Seconds by which a heartbeat is later than another one for sure. Ages and the time are not read in one moment.
LATER = 0.01


class HangDetector:
    """Finds workers whose heartbeat has been stale for at most half a second."""

    def __init__(self) -> None:
        self._confirm = CONFIRM
        self._grace = GRACE
        self._late = False
        self._due: float | None = None
        self._suspects: frozenset[int] = frozenset()
        self._late_looks: dict[int, tuple[int, float]] = {}
        """By worker: how many, and when the last heartbeat that was there goes stale."""

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
        self._late = now > self._due + min(LATE, timeout / 4)
        self._grace = min(GRACE, timeout)
        return now >= self._due

    def rest(self) -> None:
        """Nobody is there who could be looked at."""
        self._due = None
        self._suspects = frozenset()
        self._late_looks.clear()

    def judge(self, left: Mapping[int, float], now: float) -> list[int]:
        """The workers that hang: stale in this look and the one before, or whenever we came to look. `left` is, by
        worker, the seconds after which its heartbeat is stale, less than 0 if it is; who has none yet is missing."""
        stale = frozenset(worker for worker, seconds in left.items() if seconds < 0)
        if self._late:
            return self._judge_late({worker: now + left[worker] for worker in stale}, now)
        self._late_looks.clear()
        hung = stale & self._suspects
        self._suspects = stale - hung
        # Nobody else can be stale before.
        next_stale = min((seconds for worker, seconds in left.items() if worker not in stale), default=INTERVAL)
        quiet = min(INTERVAL, next_stale + 0.01)
        self._due = now + (self._confirm if self._suspects else max(self._confirm, quiet))
        return sorted(hung)

    def _judge_late(self, stale: Mapping[int, float], now: float) -> list[int]:
        self._suspects = frozenset()
        seen = self._late_looks
        self._late_looks = {
            # Whoever has beaten since the last look was only kept from it, as we were.
            worker: (seen[worker][0] + 1, since) if worker in seen and since < seen[worker][1] + LATER else (1, since)
            for worker, since in stale.items()
        }
        self._due = now + self._grace
        return sorted(worker for worker, (looks, _) in self._late_looks.items() if looks > LATE_LOOKS)
