"""The heartbeat: a timer in the event loop that records on the scoreboard when the loop last ran.

It runs in the loop and never in a thread: a thread goes on beating while the loop is blocked, and stops when a busy
process starves it. What follows from a stale heartbeat is decided in `core/heartbeats.py`.
"""

from __future__ import annotations

import asyncio
import time

from ..system.scoreboard import Row, WorkerStat

#: Seconds between beats: as long as the supervisor waits before it confirms that one is missing.
INTERVAL = 0.25


class Heartbeat:
    """Beats from its construction until `stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, row: Row, interval: float) -> None:
        self._loop = loop
        self._row = row
        self._interval = interval
        self._beat()

    def _beat(self) -> None:
        self._row[WorkerStat.HEARTBEAT] = time.monotonic_ns()
        self._timer = self._loop.call_later(self._interval, self._beat)

    def stop(self) -> None:
        """Stop beating, and clear the last beat; otherwise its growing age would be taken for a hang."""
        self._timer.cancel()
        self._row[WorkerStat.HEARTBEAT] = 0
