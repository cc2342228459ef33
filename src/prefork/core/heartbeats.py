"""The hang detector: when to read the workers' heartbeats, and which of the workers hang.

Pure: it reads no clock and no heartbeat itself, and kills nothing.

One stale heartbeat proves nothing. The supervisor may have been suspended together with its workers, because the
machine slept, or the cgroup was frozen or starved of CPU: the clock went on, and no worker could beat. So a second
check confirms a stale heartbeat after CONFIRM_INTERVAL. A check that itself comes late confirms nothing, and the
workers get PAUSE_GRACE to beat again. A worker that never beats through more than MAX_LATE_CHECKS late checks hangs
after all, on a machine that is slow besides.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Maximum seconds between checks. A hang that begins and ends between two checks goes unnoticed.
CHECK_INTERVAL = 2.0
#: Seconds from the check that finds a stale heartbeat to the one that confirms it.
CONFIRM_INTERVAL = 0.25
#: A check this many seconds late means that the supervisor was suspended, too.
LATE = 0.5
#: Seconds that the workers have to beat after such a pause, unless the timeout is shorter.
PAUSE_GRACE = 5.0
#: Late checks in a row, PAUSE_GRACE apart, through which a worker may stay without a heartbeat.
MAX_LATE_CHECKS = 3
#: A heartbeat is newer than another one if it is later by this much: its age and the time are not read in one moment.
RESOLUTION = 0.01


class HangDetector:
    """Finds workers whose heartbeat stays stale. Call `due`; if it says so, read the heartbeats and call `check`."""

    def __init__(self) -> None:
        self._confirm_interval = CONFIRM_INTERVAL
        self._grace = PAUSE_GRACE
        self._late = False
        self._due: float | None = None
        self._suspects: frozenset[int] = frozenset()
        self._late_checks: dict[int, tuple[int, float]] = {}
        """By worker: the number of late checks in a row, and the time at which its last heartbeat went stale."""

    def next_due(self, now: float) -> float:
        return now if self._due is None else self._due

    def due(self, now: float, timeout: float) -> bool:
        """Return whether to check now. `timeout` is the shortest hang timeout of the workers, in seconds."""
        self._confirm_interval = min(CONFIRM_INTERVAL, timeout / 8)
        if self._due is None:
            # There was no worker to check until now, which is no pause.
            self._due = now + self._confirm_interval
            return False
        self._late = now > self._due + min(LATE, timeout / 4)
        self._grace = min(PAUSE_GRACE, timeout)
        return now >= self._due

    def reset(self) -> None:
        """Forget everything, because there is no worker to check."""
        self._due = None
        self._suspects = frozenset()
        self._late_checks.clear()

    def check(self, seconds_left: Mapping[int, float], now: float) -> list[int]:
        """Return the workers that hang: stale in two checks in a row, or in more than MAX_LATE_CHECKS late ones.

        `seconds_left` is, by worker, the time until its heartbeat is stale, negative if it is. A worker without a
        heartbeat yet is missing.
        """
        stale = frozenset(worker for worker, seconds in seconds_left.items() if seconds < 0)
        if self._late:
            return self._check_late({worker: now + seconds_left[worker] for worker in stale}, now)
        self._late_checks.clear()
        hung = stale & self._suspects
        self._suspects = stale - hung
        # No other heartbeat can be stale before.
        next_stale = min((seconds for worker, seconds in seconds_left.items() if worker not in stale), default=None)
        quiet = CHECK_INTERVAL if next_stale is None else min(CHECK_INTERVAL, next_stale + RESOLUTION)
        self._due = now + (self._confirm_interval if self._suspects else max(self._confirm_interval, quiet))
        return sorted(hung)

    def _check_late(self, stale_since: Mapping[int, float], now: float) -> list[int]:
        self._suspects = frozenset()
        seen = self._late_checks
        self._late_checks = {
            # A worker that has beaten since the last check was only suspended, as the supervisor was.
            worker: (seen[worker][0] + 1, since)
            if worker in seen and since < seen[worker][1] + RESOLUTION
            else (1, since)
            for worker, since in stale_since.items()
        }
        self._due = now + self._grace
        return sorted(worker for worker, (checks, _) in self._late_checks.items() if checks > MAX_LATE_CHECKS)
