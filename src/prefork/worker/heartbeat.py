"""The heartbeat: a timer inside the loop that says on the scoreboard that the loop turns.

Inside the loop, never in a thread: a thread goes on beating while the loop is blocked, and stops when a busy process
starves it. What a stale heartbeat leads to is the supervisor's business.
"""

from __future__ import annotations

import asyncio
import time

from ..system.scoreboard import Row, WorkerStat

#: Seconds between beats: as long as the supervisor waits until it confirms that one is missing.
INTERVAL = 0.25


class Heartbeat:
    """Beats from construction until `stop`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        row: Row,
        interval: float = INTERVAL,
    ) -> None:
        self._loop = loop
        self._row = row
        self._interval = interval
        self._beat()

    def _beat(self) -> None:
        self._row[WorkerStat.HEARTBEAT] = time.monotonic_ns()
        self._timer = self._loop.call_later(self._interval, self._beat)

    def stop(self) -> None:
        """No more beats; the last one is taken back, so that nobody counts its age."""
        self._timer.cancel()
        self._row[WorkerStat.HEARTBEAT] = 0
