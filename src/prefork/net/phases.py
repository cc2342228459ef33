"""The states of a connection: of the whole, and of each of its two directions.

Only names and legal moves; what moves a connection is in the layers above.
"""

from __future__ import annotations

import enum


class ConnectionPhase(enum.IntEnum):
    """The life of a connection. An int, because Enum.__hash__ is slow Python code."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    """`close()` was called; what was written is being sent. Input is discarded."""
    LINGERING = enum.auto()
    """Everything is sent and the peer knows that it was the end; the peer's own end is awaited, for a short time."""
    CLOSED = enum.auto()


#: The legal moves between phases.
MOVES = {
    ConnectionPhase.OPEN: {ConnectionPhase.CLOSING, ConnectionPhase.CLOSED},
    ConnectionPhase.CLOSING: {ConnectionPhase.LINGERING, ConnectionPhase.CLOSED},
    ConnectionPhase.LINGERING: {ConnectionPhase.CLOSED},
    ConnectionPhase.CLOSED: set[ConnectionPhase](),
}


class Output(enum.Enum):
    """Our direction of an open connection."""

    OPEN = enum.auto()
    ENDED = enum.auto()
    """`write_eof()` was called."""
    BROKEN = enum.auto()
    """The peer accepts no more data (EPIPE, ECONNRESET), or the connection is closed."""


class Input(enum.Enum):
    """The peer's direction. An edge is not repeated, so READABLE is believed until the kernel says otherwise."""

    READABLE = enum.auto()
    """A receive may return data."""
    EMPTY = enum.auto()
    """The kernel has no data; an event will report some."""
    ENDED = enum.auto()
    """The handler gets no more: the peer sent close_notify, or we are closing. Its FIN has not been received."""
    FIN = enum.auto()
    """The peer's FIN was received, or the connection is closed."""
    PAUSED = enum.auto()
    """The handler has paused reading. Events are ignored: it is READABLE when the handler resumes."""
