"""A timer of a worker's loop for the sums of the events that its log has held back; the supervisor has no loop."""

from __future__ import annotations

import asyncio
import contextlib
import time

from ..events import HeldBack

#: Seconds between two looks while events are held back: a cause may come at another moment than the first one.
_MIN_WAIT = 0.1


class HeldBackTimer:
    """Logs how many events `log` has held back when their interval is over. Runs only while there are some."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: HeldBack) -> None:
        self._loop = loop
        self._log = log
        log.on_held = self._start_soon

    def _start_soon(self) -> None:
        # Events also come from other threads; and a program may have closed the loop.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wait)

    def _wait(self) -> None:
        due = self._log.next_due()
        if due is not None:
            self._loop.call_later(max(_MIN_WAIT, due - time.monotonic()), self._flush)

    def _flush(self) -> None:
        self._log.flush()
        self._wait()
