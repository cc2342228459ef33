"""When a process beside the workers is started again, and whether the log has said that it is not there.

Only the pace, by the policy of the workers; the processes themselves are in `source_watch.py` and `exporter.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.restart_policy import History, Policy, after_death, after_fork, delay

_POLICY = Policy()


class Restarts:
    """The restarts of one process, of which at most one runs. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._history = History()
        self._is_told = False
        """Whether the log says that the process is not there."""
        self.start_at = 0.0
        """Do not start the next one before."""

    def on_start(self, now: float) -> None:
        """Note an attempt to start the process."""
        self._history = after_fork(self._history, now, _POLICY)

    def on_work(self) -> None:
        """Note that the process does its work: its next failure is told again."""
        self._is_told = False

    def on_failure(self, uptime: float | None, now: float, tell: Callable[[float], object]) -> None:
        """Note that the process could not start, or died `uptime` seconds after it began to work (None: never).

        `tell` gets the seconds until the next start: once, until one of them works again.
        """
        self._history = after_death(self._history, uptime, 0.0, _POLICY)
        wait = max(delay(self._history, now, _POLICY), _POLICY.first_delay)
        self.start_at = now + wait
        if not self._is_told:
            self._is_told = True
            tell(wait)
