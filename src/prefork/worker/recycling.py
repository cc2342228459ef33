"""A worker's account of itself: how much it has served and uses, and the message that it has been enough.

The limits are decided upon in `core/recycling.py`; what follows from the message is the supervisor's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.recycling import RecycleLimits
from ..system.memory import resident_bytes
from ..system.scoreboard import Row, WorkerStat

#: Seconds between looks.
INTERVAL = 0.5


class RecyclingCheck:
    """Looks from construction until `stop`, and calls `tell` once, with the reason, when `lifetime` has passed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, row: Row, lifetime: RecycleLimits, tell: Callable[[str], object]
    ) -> None:
        self._loop = loop
        self._row = row
        self._lifetime = lifetime
        self._tell = tell
        self._since = loop.time()
        self._timer = loop.call_later(INTERVAL, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self) -> None:
        rss = 0 if self._lifetime.rss is None else resident_bytes()
        reason = self._lifetime.spent(self._row[WorkerStat.ACCEPTED], self._loop.time() - self._since, rss)
        if reason:
            self._tell(reason)
        else:
            self._timer = self._loop.call_later(INTERVAL, self._look)
