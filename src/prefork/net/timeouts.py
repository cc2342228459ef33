"""The timeouts of one connection: their state, made when one is first needed, and the view of it that handlers get.

A timeout is a setting in seconds, a deadline the moment when it passes, which `deadlines.py` finds out. The write
timeout is only kept here; `sending.py` applies it.
"""

from __future__ import annotations

import math
from typing import Protocol

from ..checks import check_seconds
from ..config import option_of
from ..core.account import CloseReason
from ..errors import ConnectionTimeoutError
from .deadlines import Deadline
from .server_state import ServerState


class TimedConnection(Protocol):
    """A stream. Its methods are private because handlers see streams."""

    _idle_since: float
    """When the handler began to wait for the next byte; negative if data arrived since."""

    def _is_closed(self) -> bool: ...
    def _awaits_input(self) -> bool: ...
    def _restart_write_timeout(self) -> None: ...
    def _abort_with(self, error: ConnectionTimeoutError, reason: CloseReason) -> None: ...


class TimeoutState:
    """The first-byte, idle and age deadlines of one connection, and the timeouts that its handler has set."""

    __slots__ = ("_accepted_at", "_connection", "_shared", "age", "idle", "started_at", "write")

    def __init__(self, connection: TimedConnection, shared: ServerState, accepted_at: float) -> None:
        self._connection = connection
        self._shared = shared
        self._accepted_at = accepted_at
        self.idle: float | None = None
        self.write = shared.limits.write_timeout
        self.age: float | None = None
        self.started_at: float | None = None
        """The connection's `_idle_since` until its first byte. The core resets that one with each receive, where moving
        a deadline would cost more."""

    def start(self, data_arrived: bool) -> None:
        """Start the deadlines of the server's limits that count from the moment the handler runs."""
        limits = self._shared.limits
        if not data_arrived and limits.first_byte_timeout is not None:
            self._restart_wait()
            self.started_at = self._connection._idle_since
            self._set(Deadline.FIRST_BYTE, limits.first_byte_timeout)
        if limits.idle_timeout is not None:
            self.set_idle_timeout(limits.idle_timeout)

    def _restart_wait(self) -> None:
        before = self._connection._idle_since
        # A moment early: uvloop's clock stands still within an iteration, so a wait that begins after the first data
        # could have the time of this one, and the peer would be taken for mute.
        self._connection._idle_since = now = math.nextafter(self._shared.loop.time(), 0.0)
        if before == self.started_at:
            self.started_at = now

    def set_idle_timeout(self, seconds: float | None) -> None:
        self.idle = seconds
        if self._connection._idle_since >= 0 or self._connection._awaits_input():
            self._restart_wait()
        self._set(Deadline.IDLE, seconds)

    def set_write_timeout(self, seconds: float) -> None:
        self.write = seconds
        self._connection._restart_write_timeout()

    def set_age_timeout(self, seconds: float | None) -> None:
        self.age = seconds
        now = self._shared.loop.time()
        self._set(Deadline.AGE, None if seconds is None else self._accepted_at + seconds - now)

    def close(self) -> None:
        for deadline in (Deadline.FIRST_BYTE, Deadline.IDLE, Deadline.AGE):
            self._shared.deadlines.clear(self, deadline)

    def _set(self, deadline: Deadline, seconds: float | None) -> None:
        if seconds is None or self._connection._is_closed():
            self._shared.deadlines.clear(self, deadline)
        else:
            self._shared.deadlines.set(self, deadline, seconds)

    def _on_deadline(self, deadline: Deadline) -> None:
        if self._connection._is_closed():
            # By another deadline that passed at the same moment.
            return
        limits = self._shared.limits
        if deadline is Deadline.AGE:
            self._expire(f"open for {self.age:g} s", CloseReason.MAX_AGE, self.age == limits.max_age, "age")
        elif deadline is Deadline.FIRST_BYTE:
            if self._connection._idle_since == self.started_at:
                what = f"no data within {limits.first_byte_timeout:g} s"
                self._expire(what, CloseReason.FIRST_BYTE_TIMEOUT, True)
        elif deadline is Deadline.IDLE:
            self._on_idle()
        else:
            raise AssertionError(f"{deadline!r} is no deadline of this class")

    def _on_idle(self) -> None:
        idle = self.idle
        if idle is None:
            return
        left = self._idle_left(idle)
        if left > 0:
            self._set(Deadline.IDLE, left)
        else:
            by_option = idle == self._shared.limits.idle_timeout
            self._expire(f"no data for {idle:g} s", CloseReason.IDLE_TIMEOUT, by_option, "idle")

    def _idle_left(self, idle: float) -> float:
        """Return the seconds until the next check. A connection that is not waiting for its peer has all of them."""
        if self._connection._idle_since < 0 or not self._connection._awaits_input():
            return idle
        return self._connection._idle_since + idle - self._shared.loop.time()

    def _expire(self, what: str, reason: CloseReason, by_option: bool, attribute: str = "") -> None:
        cure = option_of(reason) if by_option else f"stream.timeouts.{attribute}"
        self._connection._abort_with(ConnectionTimeoutError(f"{what} ({cure})"), reason)


class Timeouts:
    """`stream.timeouts`: the timeouts of one connection in seconds; None is no timeout.

    A value holds from the moment it is set, for this connection only. Raises ConfigError, a ValueError, for a value
    that is not a positive number of seconds.
    """

    __slots__ = ("_state",)

    def __init__(self, state: TimeoutState) -> None:
        self._state = state

    @property
    def idle(self) -> float | None:
        """How long the handler may wait for the peer's next byte."""
        return self._state.idle

    @idle.setter
    def idle(self, seconds: float | None) -> None:
        self._state.set_idle_timeout(_checked("idle", seconds))

    @property
    def write(self) -> float:
        """How long unsent bytes may wait without the peer reading one."""
        return self._state.write

    @write.setter
    def write(self, seconds: float) -> None:
        check_seconds("timeouts.write", seconds, zero=False)
        self._state.set_write_timeout(seconds)

    @property
    def age(self) -> float | None:
        """How long the connection may be open; counted from accept, whenever it is set."""
        return self._state.age

    @age.setter
    def age(self, seconds: float | None) -> None:
        self._state.set_age_timeout(_checked("age", seconds))

    def __repr__(self) -> str:
        return f"<Timeouts idle={self.idle} write={self.write} age={self.age}>"


def _checked(name: str, seconds: float | None) -> float | None:
    if seconds is not None:
        check_seconds(f"timeouts.{name}", seconds, zero=False)
    return seconds
