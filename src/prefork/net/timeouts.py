"""`stream.timeouts`: the deadlines of one connection, which its handler may set otherwise than the server does.

A view of a stream, without state. When a deadline has passed is found out in `deadlines.py`, what follows in
`channel.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checks import check_seconds

if TYPE_CHECKING:
    from .stream import Stream


class Timeouts:
    """Seconds; None is no deadline. What is set holds from then on, and for this connection alone.

    Raises ConfigError for what is no number of seconds.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def idle(self) -> float | None:
        """How long the handler may wait for the next byte of its peer."""
        return self._stream._idle

    @idle.setter
    def idle(self, seconds: float | None) -> None:
        _check("idle", seconds)
        self._stream.limit_idle(seconds)

    @property
    def write(self) -> float:
        """How long unsent bytes may wait without the peer taking one."""
        return self._stream._write_timeout

    @write.setter
    def write(self, seconds: float) -> None:
        check_seconds("timeouts.write", seconds, zero=False)
        self._stream.limit_write(seconds)

    @property
    def age(self) -> float | None:
        """From accept to the end, whatever happens in between; what is set counts from accept, too."""
        return self._stream._max_age

    @age.setter
    def age(self, seconds: float | None) -> None:
        _check("age", seconds)
        self._stream.limit_age(seconds)

    def __repr__(self) -> str:
        return f"<Timeouts idle={self.idle} write={self.write} age={self.age}>"


def _check(name: str, seconds: float | None) -> None:
    if seconds is not None:
        check_seconds(f"timeouts.{name}", seconds, zero=False)
