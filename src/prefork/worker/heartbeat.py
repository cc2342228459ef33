"""The heartbeat: a timer in the event loop that records on the scoreboard when the loop last ran, and how late it was.

It runs in the loop and never in a thread: a thread goes on beating while the loop is blocked, and stops when a busy
process starves it. What follows from a stale heartbeat is decided in `core/heartbeats.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from ..system.scoreboard import Row, WorkerStat

#: Seconds between beats: as long as the supervisor waits before it confirms that one is missing.
INTERVAL = 0.25
#: Seconds of which the scoreboard has the median, the 99th percentile and the maximum of the loop's lag.
LAG_PERIOD = 60.0
#: Measurements that are kept: those of LAG_PERIOD, unless the interval is shorter than usual.
MAX_LAGS = round(LAG_PERIOD / INTERVAL)


class Heartbeat:
    """Beats from its construction until `stop`. `publish` is called with each beat."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, row: Row, interval: float, publish: Callable[[], object] | None = None
    ) -> None:
        self._loop = loop
        self._row = row
        self._account = row.account()
        self._interval = interval
        self._publish = publish
        self._lags: deque[int] = deque(maxlen=min(MAX_LAGS, max(1, round(LAG_PERIOD / interval))))
        self._beat(loop.time())

    def _beat(self, due: float) -> None:
        now = self._loop.time()
        self._row[WorkerStat.HEARTBEAT] = time.monotonic_ns()
        self._measure(now - due)
        if self._publish is not None:
            self._publish()
        due = now + self._interval
        self._timer = self._loop.call_at(due, self._beat, due)

    def _measure(self, lag: float) -> None:
        # The loop may call early, by up to its clock's resolution.
        lag = max(0.0, lag)
        self._account.lag(lag)
        self._lags.append(round(lag * 1e9))
        ordered = sorted(self._lags)
        row, last = self._row, len(ordered) - 1
        row[WorkerStat.LAG_P50] = ordered[last // 2]
        row[WorkerStat.LAG_P99] = ordered[last * 99 // 100]
        row[WorkerStat.LAG_MAX] = ordered[last]

    def stop(self) -> None:
        """Stop beating, and clear the last beat; otherwise its growing age would be taken for a hang."""
        self._timer.cancel()
        self._row[WorkerStat.HEARTBEAT] = 0
