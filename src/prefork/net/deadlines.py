"""The deadlines of all connections of one server, on one timer of the loop.

Connects `core/timer_wheel.py` with the loop's clock. What follows a deadline that passed is for its owner to decide.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from ..core.timer_wheel import TimerWheel

#: Seconds that a deadline may be noticed late. The timer runs at most once in this time.
TICK = 1 / 64


class Deadline(enum.IntEnum):
    """What a connection may wait for. An int, because Enum.__hash__ is slow Python code."""

    PROXY = enum.auto()
    """The PROXY header, from accept to its end."""
    HANDSHAKE = enum.auto()
    """The TLS handshake, from its start to its end."""
    FIRST_BYTE = enum.auto()
    """The peer's first byte after the handler started."""
    IDLE = enum.auto()
    """The next byte while the handler waits for one."""
    WRITE = enum.auto()
    """The peer reads at least one of the unsent bytes."""
    SEND_RETRY = enum.auto()
    """No limit but a timer: the kernel had no memory for a send, which is repeated when this passes."""
    AGE = enum.auto()
    """The whole life of the connection, from accept on."""
    LINGER = enum.auto()
    """The peer's end after ours was sent."""
    DELIVERY = enum.auto()
    """What a lingering TLS connection sent is acknowledged."""


class DeadlineOwner(Protocol):
    """A connection, or the state of its timeouts. Its method is private because handlers see streams."""

    def _on_deadline(self, deadline: Deadline) -> None: ...


class Deadlines:
    """Call `_on_deadline` of each owner whose time is up. The timer runs only while a deadline is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wheel: TimerWheel[tuple[DeadlineOwner, Deadline]] = TimerWheel(TICK)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._wheel)

    def set(self, owner: DeadlineOwner, deadline: Deadline, seconds: float) -> None:
        """Let `deadline` pass in `seconds` from now; replaces the time that it had."""
        self._wheel.set((owner, deadline), self._loop.time() + seconds)
        self._schedule()

    def clear(self, owner: DeadlineOwner, deadline: Deadline) -> None:
        self._wheel.clear((owner, deadline))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wheel = TimerWheel(TICK)

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
        # The loop may call early, by up to its clock's resolution; the wheel is never early.
        now = max(self._loop.time(), self._timer_at)
        for owner, deadline in self._wheel.expired(now):
            try:
                owner._on_deadline(deadline)
            except Exception as exc:
                message = f"handling of deadline {deadline.name} failed"
                self._loop.call_exception_handler({"message": message, "exception": exc})
        self._schedule()
