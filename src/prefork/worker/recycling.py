"""Measure how much this worker has served and how much memory it uses, and report once when a limit is reached.

The limits are in `core/recycling.py`; what follows from the report is decided in `core/roster.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.recycling import RecycleLimits
from ..system.memory import resident_bytes
from ..system.scoreboard import Row, WorkerStat

#: Seconds between checks.
INTERVAL = 0.5


class RecyclingCheck:
    """Checks from its construction until `stop`; calls `on_limit` once, with the reason, when `limits` are reached.

    A limit of memory that is reached at the construction does not count: `on_too_low` gets the bytes and the limit.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        row: Row,
        limits: RecycleLimits,
        on_limit: Callable[[str], object],
        on_too_low: Callable[[int, int], object],
    ) -> None:
        self._loop = loop
        self._row = row
        self._limits = limits
        self._on_limit = on_limit
        self._started = loop.time()
        if limits.rss is not None and (rss := resident_bytes()) >= limits.rss:
            self._limits = limits.without_rss()
            on_too_low(rss, limits.rss)
        self._timer = loop.call_later(INTERVAL, self._check)

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        rss = 0 if self._limits.rss is None else resident_bytes()
        reason = self._limits.reached(self._row[WorkerStat.ACCEPTED], self._loop.time() - self._started, rss)
        if reason is not None:
            self._on_limit(reason)
        else:
            self._timer = self._loop.call_later(INTERVAL, self._check)
