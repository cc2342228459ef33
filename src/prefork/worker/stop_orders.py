"""What a worker is told about its end: to drain, until when, and later perhaps to hurry.

The supervisor writes the deadline to the scoreboard and then sends a signal. What a drain does is in `main.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from types import FrameType

from ..system.scoreboard import Scoreboard


class StopOrders:
    """Receives the orders in `loop`, from its construction on. `row` is the number of the worker's row.

    SIGTERM that the supervisor has not sent is an order too, to drain for `drain_timeout` seconds.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, scoreboard: Scoreboard, row: int, drain_signal: int, drain_timeout: float
    ) -> None:
        self.ordered = asyncio.Event()
        self._loop = loop
        self._scoreboard = scoreboard
        self._row = row
        self._drain_timeout = drain_timeout
        self._bound: asyncio.Timeout | None = None
        try:
            # By the loop, so that its wake-up descriptor is set: then any signal ends its wait.
            loop.add_signal_handler(drain_signal, self._on_order)
        except RuntimeError as exc:
            # asyncio raises RuntimeError for a failed system call; the message needs the OSError.
            raise exc.__context__ if isinstance(exc.__context__, OSError) else exc from None
        self._foreign: object = None
        if drain_signal != signal.SIGTERM:
            before = signal.signal(signal.SIGTERM, self._on_sigterm)
            self._foreign = before if callable(before) else None

    def timeout(self) -> float | None:
        """Return the seconds that open connections have from now on; None: no limit."""
        until = self._scoreboard.drain_deadline(self._row)
        if until is None:
            return self._drain_timeout
        return None if math.isinf(until) else max(0.0, until - time.monotonic())

    def hurries(self, bound: asyncio.Timeout) -> None:
        """Shorten `bound`, which waits for connections, whenever an order says so."""
        self._bound = bound

    def foreign_handler(self) -> str:
        """Return the name of the handler for SIGTERM that the service has set, also before this was made; "": none."""
        now = signal.getsignal(signal.SIGTERM)
        if now != self._on_sigterm and callable(now):
            self._foreign = now
        return "" if self._foreign is None else _name(self._foreign)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        # A handler runs between any two instructions of the loop.
        self._loop.call_soon_threadsafe(self._on_order)

    def _on_order(self) -> None:
        self.ordered.set()
        timeout = self.timeout()
        if self._bound is not None and timeout is not None:
            # RuntimeError: the wait has just ended.
            with contextlib.suppress(RuntimeError):
                self._bound.reschedule(self._loop.time() + timeout)


def _name(handler: object) -> str:
    module = getattr(handler, "__module__", None) or ""
    if module.partition(".")[0] in ("asyncio", "uvloop"):
        # The loop's own, which calls what the service has given to the loop.
        return "by loop.add_signal_handler"
    return f"{module}.{getattr(handler, '__qualname__', type(handler).__qualname__)}"
