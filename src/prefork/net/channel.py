"""The lowest layer of a connection: its socket, its phase, the error that broke it, and the release of both.

A connection is one object in four layers, a class and a file each: Channel <- Sending <- Receiving <- Stream. A layer
calls those below it. What it has to tell those above it is a hook, which is declared here and overridden there.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import struct
from collections.abc import Callable

from ..errors import ConnectionOverflowError, ConnectionTimeoutError
from ..events import ConnectionAborted
from ..text import escape_ascii, format_address
from .deadlines import Deadline
from .server_state import ServerState
from .timeouts import TimeoutState
from .tls import TLSEngine

#: Reads and writes of one connection before other callbacks run, if its peer is so fast that it never has to wait.
MAX_IO_PER_TICK = 32
#: A flag of each call, because O_NONBLOCK is not certain. A child that has the socket as its standard input may clear
#: it for all, and the number of a closed descriptor may be another file's.
DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ConnectionPhase(enum.IntEnum):
    """The life of a connection. An int, because `hash` of another enum is a function in Python."""

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


class Channel:
    """Owns a connected, non-blocking socket from construction until it closes it."""

    __slots__ = (
        "__weakref__",
        "_accepted_at",
        "_address",
        "_budget",
        "_engine",
        "_error",
        "_fd",
        "_on_closed",
        "_phase",
        "_shared",
        "_sock",
        "_socket_exposed",
        "_timeouts",
    )

    def __init__(self, sock: socket.socket, address: object, shared: ServerState) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._address = address
        self._shared = shared
        self._phase = ConnectionPhase.OPEN
        self._error: OSError | None = None
        self._engine: TLSEngine | None = None
        self._budget = MAX_IO_PER_TICK
        """Reads and writes left before other callbacks run."""
        self._accepted_at = shared.loop.time()
        self._timeouts: TimeoutState | None = None
        self._socket_exposed = False
        """The handler was given the socket: it may have copied it or passed it to a child."""
        self._on_closed: Callable[[], None] | None = None

    # --- hooks: what the layers above do ------------------------------------------------------------------------------

    def _on_ready(self, mask: int) -> None:
        raise NotImplementedError

    def _on_deadline(self, deadline: Deadline) -> None:
        raise NotImplementedError

    def _awaits_input(self) -> bool:
        """Whether a task waits for the peer's data, and reading is not paused."""
        raise NotImplementedError

    def _restart_write_timeout(self) -> None:
        raise NotImplementedError

    def _discard_received(self) -> None:
        raise NotImplementedError

    def _release_input(self) -> None:
        """End the input and wake the reader: the connection is closed."""
        raise NotImplementedError

    def _release_output(self) -> None:
        """Drop the output and wake the writers: the connection is closed."""
        raise NotImplementedError

    # --- state --------------------------------------------------------------------------------------------------------

    def exception(self) -> BaseException | None:
        """Return the error that broke the connection, or None."""
        return self._error

    def _failure(self) -> OSError:
        """Return a copy of the error that broke the connection: raising one object again would grow its traceback."""
        error = self._error
        if error is None:
            return ConnectionResetError("Connection lost")
        if isinstance(error, TimeoutError):
            # Only once: a handler that catches the TimeoutError of its own `asyncio.timeout()` and reads again would
            # otherwise loop without ever waiting, and the worker would hang.
            if vars(error).get("was_raised"):
                later = ConnectionAbortedError(*error.args)
                later.__cause__ = error
                return later
            vars(error)["was_raised"] = True
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__
        return copy

    def _is_closed(self) -> bool:
        return self._phase is ConnectionPhase.CLOSED

    def _enter(self, phase: ConnectionPhase) -> None:
        if phase not in MOVES[self._phase]:
            raise RuntimeError(f"a connection cannot go from {self._phase.name} to {phase.name}")
        self._phase = phase

    def _timeout_state(self) -> TimeoutState:
        state = self._timeouts
        if state is None:
            state = TimeoutState(self, self._shared, self._accepted_at)
            if self._phase is not ConnectionPhase.CLOSED:
                # Otherwise the two would keep each other alive until the next garbage collection.
                self._timeouts = state
        return state

    # --- the end ------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close the socket at once: unsent bytes are lost, and a TCP peer gets a reset."""
        if self._phase is ConnectionPhase.CLOSED:
            return
        self._reset_on_close()
        self._discard_received()
        self._dispose()

    def _abort_with(self, error: ConnectionTimeoutError | ConnectionOverflowError, logged: bool = True) -> None:
        if logged:
            self._shared.emit(ConnectionAborted(escape_ascii(format_address(self._address)), str(error)))
        self._error = error
        self.abort()

    def _fail(self, error: OSError) -> None:
        """Dispose of a connection that is broken in both directions. After `close()` some peers end so: no error."""
        if self._phase is ConnectionPhase.OPEN:
            self._error = self._error or error
        self._dispose()

    def _pending_error(self) -> OSError | None:
        """Return and clear the error that the kernel has noted for the socket."""
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(code, os.strerror(code)) if code else None

    def _reset_on_close(self) -> None:
        """Make the close a reset for a TCP peer, because a clean end would claim that it has received everything."""
        if type(self._address) is tuple:
            # Fails if the peer's reset came first.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _dispose(self) -> None:
        """Close the socket and release everything: the one way into CLOSED, legal from each other phase."""
        before = self._phase
        if before is ConnectionPhase.CLOSED:
            return
        self._phase = ConnectionPhase.CLOSED
        shared = self._shared
        # Before the close, because a descriptor that another process still holds would go on reporting.
        shared.poller.remove(self._fd, self, self._socket_exposed or shared.forked)
        if before is ConnectionPhase.LINGERING:
            shared.deadlines.clear(self, Deadline.LINGER)
            shared.deadlines.clear(self, Deadline.DELIVERY)
        if self._timeouts is not None:
            self._timeouts.close()
            self._timeouts = None
        self._release_input()
        self._release_output()
        self._sock.close()
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed()
