"""One poll(2) for all parts of the supervisor, and the watchdog's pings, which are one of the things it wakes for.

Knows descriptors and times, and nothing of what they mean.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

#: poll(2) takes milliseconds as an int, so a drain timeout of a month would not fit.
MAX_WAIT = 3600.0


class Part(Protocol):
    """A part of the supervisor that waits for descriptors, by the events to poll, and for the next time it is due."""

    def interests(self, now: float) -> Mapping[int, int]: ...
    def next_due(self, now: float) -> float | None: ...


def wait(interests: Mapping[int, int], times: Iterable[float | None], now: float) -> set[int]:
    """Wait until one of the descriptors has one of its events, or the first of `times` has come.

    Return the descriptors that are ready. Raises OSError if memory is short, or if RLIMIT_NOFILE was lowered below the
    number of descriptors (EINVAL).
    """
    poll = select.poll()
    for fd, events in interests.items():
        poll.register(fd, events)
    due = min((each for each in times if each is not None), default=None)
    # Rounded up, otherwise the caller would spin through the last millisecond.
    timeout = None if due is None else int(min(max(0.0, due - now), MAX_WAIT) * 1000) + 1
    return {fd for fd, _ in poll.poll(timeout)}


class Watchdog:
    """Pings the service manager's watchdog twice in `timeout` seconds; never without a timeout.

    The watchdog watches the service and not this process: while no worker serves it gets no ping, and so restarts the
    service.
    """

    def __init__(self, timeout: float | None, ping: Callable[[], object]) -> None:
        self._interval = None if timeout is None else timeout / 2
        self._ping = ping
        self._due = 0.0

    def next_due(self) -> float | None:
        return None if self._interval is None else self._due

    def update(self, serving: bool, now: float) -> None:
        if self._interval is not None and now >= self._due:
            self._due = now + self._interval
            if serving:
                self._ping()
