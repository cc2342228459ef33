"""The deadlines of one connection with a protocol: first byte, idle and age, as far as they apply to its socket.

Bytes pass between transport and protocol only, so the kernel is asked when a deadline may have passed: no read costs
anything, except the first one of TLS and unix sockets. What a stream has instead is in timeouts.py.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

from ..config import option_of
from ..core.account import CloseReason
from ..system.tcp_info import counts_bytes, read_activity
from .deadlines import Deadline
from .first_byte import watch_first_byte
from .server_state import ServerState


class TimedProtocol(Protocol):
    """A connection with a protocol. Its methods are private, because only its deadlines call them."""

    def _awaits_peer(self) -> bool: ...
    def _abort_for(self, what: str, reason: CloseReason) -> None: ...


class ProtocolTimeouts:
    """The deadlines of one connection, from its accept until `close`.

    A unix socket has no idle deadline, because the kernel counts no bytes of it.
    """

    __slots__ = ("_awaits_since", "_connection", "_has_header", "_shared", "_sock", "_watches")

    def __init__(
        self, connection: TimedProtocol, sock: socket.socket, shared: ServerState, has_header: bool = False
    ) -> None:
        self._connection: TimedProtocol | None = connection
        """None once it is closed: otherwise the two would keep each other alive until the next garbage collection."""
        self._sock = sock
        self._shared = shared
        self._has_header = has_header
        """The connection began with a PROXY header, which the kernel counts as bytes of the peer."""
        self._awaits_since = 0.0
        """When it became the peer's turn to send, as far as it is known; its silence does not count before."""
        self._watches: Callable[[], bool] | None = None
        """Whether the first byte is still waited for in the transport; None: the kernel knows, or there is no limit."""
        if shared.limits.max_age is not None:
            shared.deadlines.set(self, Deadline.AGE, shared.limits.max_age)

    def start(self, transport: Any) -> None:
        """Start the deadlines that count from `connection_made`, after a TLS handshake."""
        if self._connection is None or transport.is_closing():
            return
        self._awaits_since = self._shared.loop.time()
        limits, deadlines = self._shared.limits, self._shared.deadlines
        counted = counts_bytes(self._sock)
        if limits.first_byte_timeout is not None:
            if not counted or self._has_header or transport.get_extra_info("ssl_object") is not None:
                self._watches = watch_first_byte(transport, self._first_byte_arrived)
            deadlines.set(self, Deadline.FIRST_BYTE, limits.first_byte_timeout)
        if counted and limits.idle_timeout is not None:
            deadlines.set(self, Deadline.IDLE, limits.idle_timeout)

    def _first_byte_arrived(self) -> None:
        self._watches = None
        self._shared.deadlines.clear(self, Deadline.FIRST_BYTE)

    def _is_mute(self) -> bool:
        """Return whether it is certain that the peer has sent nothing."""
        if self._watches is not None:
            return self._watches()
        activity = read_activity(self._sock)
        return activity is not None and not activity.bytes_received

    def close(self) -> None:
        """Clear all deadlines of the connection (idempotent)."""
        self._connection = self._watches = None
        for deadline in (Deadline.FIRST_BYTE, Deadline.IDLE, Deadline.AGE):
            self._shared.deadlines.clear(self, deadline)

    def _on_deadline(self, deadline: Deadline) -> None:
        connection = self._connection
        if connection is None:
            # Closed by another deadline that passed at the same moment.
            return
        limits = self._shared.limits
        if deadline is Deadline.AGE:
            self._expire(connection, f"open for {limits.max_age:g} s", CloseReason.MAX_AGE)
        elif deadline is Deadline.FIRST_BYTE:
            if self._is_mute():
                what = f"no data within {limits.first_byte_timeout:g} s"
                self._expire(connection, what, CloseReason.FIRST_BYTE_TIMEOUT)
        elif deadline is Deadline.IDLE and limits.idle_timeout is not None:
            self._on_idle(connection, limits.idle_timeout)

    def _on_idle(self, connection: TimedProtocol, timeout: float) -> None:
        activity = read_activity(self._sock)
        if activity is None:
            return
        now = self._shared.loop.time()
        if not connection._awaits_peer():
            self._awaits_since = now
        left = max(self._awaits_since, now - activity.silent_for) + timeout - now
        if left > 0:
            self._shared.deadlines.set(self, Deadline.IDLE, left)
        else:
            self._expire(connection, f"no data for {timeout:g} s", CloseReason.IDLE_TIMEOUT)

    def _expire(self, connection: TimedProtocol, what: str, reason: CloseReason) -> None:
        self.close()
        connection._abort_for(f"{what} ({option_of(reason)})", reason)


def make_timeouts(
    connection: TimedProtocol, sock: socket.socket, shared: ServerState, has_header: bool
) -> ProtocolTimeouts | None:
    """Return the deadlines of a connection that was accepted just now; None if the server's limits have none."""
    limits = shared.limits
    if limits.max_age is None and limits.first_byte_timeout is None and limits.idle_timeout is None:
        return None
    return ProtocolTimeouts(connection, sock, shared, has_header)
