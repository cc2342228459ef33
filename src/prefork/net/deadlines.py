"""The deadlines of all connections of one server, on one timer of the loop.

Connects `core/timer_wheel.py` with the loop's clock. What a passed deadline means is the stream's business.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ..core.timer_wheel import TimerWheel

#: How late a deadline may be noticed, in seconds; and the timer runs as often at the most.
GRAIN = 1 / 64


class Expirable(Protocol):
    """Who has deadlines: a stream, one for each phase."""

    def on_expired(self, phase: str) -> None:
        """The deadline of `phase` has passed."""


class Deadlines:
    """`set`, `clear`, and `on_expired` for those whose time is up. The timer runs only while something is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wheel: TimerWheel[tuple[Expirable, str]] = TimerWheel(GRAIN)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._wheel)

    def set(self, owner: Expirable, phase: str, seconds: float) -> None:
        """`owner.on_expired(phase)` in `seconds` from now; replaces the deadline that the phase has."""
        self._wheel.set((owner, phase), self._loop.time() + seconds)
        self._schedule()

    def clear(self, owner: Expirable, phase: str) -> None:
        """Not any more."""
        self._wheel.clear((owner, phase))

    def close(self) -> None:
        """Forget all deadlines."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wheel = TimerWheel(GRAIN)

    def _schedule(self) -> None:
        due = self._wheel.next_due()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        # The loop may call up to its clock's resolution early; the wheel is never early.
        now = max(self._loop.time(), self._timer_at)
        for owner, phase in self._wheel.expired(now):
            try:
                owner.on_expired(phase)
            except Exception as exc:
                self._loop.call_exception_handler({"message": f"deadline {phase} failed", "exception": exc})
        self._schedule()
