"""The lowest layer of a connection in pure Python: its socket, its phase, the error that broke it, and its close.

A connection is one object in layers, a class and a file each: Channel <- Sending <- Receiving <- Policy <- Stream. A
layer calls those below it. What it has to tell those above it is a hook: a method that is declared here or in
`sending.py`, and overridden above. The first three layers are the core; where the package was built with a compiler,
`prefork._native.Stream` takes their place, with the same names and the same hooks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from .own_errors import Raised
from .phases import ConnectionPhase
from .server_state import ServerState
from .timeouts import TimeoutState
from .tls import TLSEngine

#: Reads and writes of one connection before other callbacks run. Counted from its last wait, because a fast peer never
#: lets it wait.
MAX_IO_BEFORE_YIELD = 32
#: A flag of each call, because O_NONBLOCK is not certain. A child that has the socket as its standard input may clear
#: it for all, and the number of a closed descriptor may be another file's.
DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
#: The value of `_idle_since` while data has arrived since the last wait.
NOT_IDLE = -1.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

# Looked up several times for each connection; an attribute of an enum class costs twice as much as a global.
_OPEN, _LINGERING, _CLOSED = ConnectionPhase.OPEN, ConnectionPhase.LINGERING, ConnectionPhase.CLOSED


class Channel:
    """Owns a connected, non-blocking socket from construction until it closes it."""

    __slots__ = (
        "__weakref__",
        "_accepted_at",
        "_address",
        "_engine",
        "_error",
        "_fd",
        "_idle_since",
        "_io_left",
        "_on_closed",
        "_phase",
        "_received",
        "_sent",
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
        self._phase = _OPEN
        self._error: OSError | None = None
        self._engine: TLSEngine | None = None
        self._io_left = MAX_IO_BEFORE_YIELD
        """Reads and writes left before other callbacks run."""
        self._received = 0
        """Bytes, as they come over the wire."""
        self._sent = 0
        self._accepted_at = shared.loop.time()
        self._idle_since = NOT_IDLE
        """When the handler began to wait for the next byte, while there are timeouts."""
        self._timeouts: TimeoutState | None = None
        self._socket_exposed = False
        """The handler was given the socket: it may have copied it or passed it to a child."""
        self._on_closed: Callable[[], None] | None = None

    # --- hooks: what the layers above do ------------------------------------------------------------------------------

    def _on_ready(self, mask: int) -> None:
        raise NotImplementedError

    def _failure(self) -> OSError:
        """Return what to raise because the connection is broken."""
        raise NotImplementedError

    def _raised(self, error: Raised) -> Raised:
        """Return `error`, marked as one that this connection raises."""
        raise NotImplementedError

    def _on_disposed(self) -> None:
        """Clear the deadlines: the connection lingered, or has timeouts of its own."""
        raise NotImplementedError

    def _close_input(self) -> None:
        """End the input and wake the reader: the connection is closed."""
        raise NotImplementedError

    def _close_output(self) -> None:
        """Drop the output and wake the writers: the connection is closed."""
        raise NotImplementedError

    # --- the end ------------------------------------------------------------------------------------------------------

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
        # Not by the address, which a proxy may have told.
        if self._sock.family != socket.AF_UNIX:
            # Fails if the peer's reset came first.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _dispose(self) -> None:
        """Close the socket and release everything: the one way into CLOSED, legal from each other phase."""
        before = self._phase
        if before is _CLOSED:
            return
        self._phase = _CLOSED
        shared = self._shared
        # Before the close, because a descriptor that another process still holds would go on reporting.
        shared.poller.remove(self._fd, self, self._socket_exposed or shared.forked)
        if before is _LINGERING or self._timeouts is not None:
            self._on_disposed()
        self._close_input()
        self._close_output()
        self._sock.close()
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed()
