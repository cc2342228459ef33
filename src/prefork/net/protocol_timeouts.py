"""The deadlines of one connection with a protocol: first byte, idle and age, as far as they apply to its socket.

Bytes pass between transport and protocol only, so the kernel is asked when a deadline may have passed: no read costs
anything. What a stream has instead is in timeouts.py.
"""

from __future__ import annotations

import socket
from typing import Protocol

from ..system.tcp_info import read_activity
from .deadlines import Deadline
from .server_state import ServerState


class TimedProtocol(Protocol):
    """A connection with a protocol. Its methods are private, because only its deadlines call them."""

    def _awaits_peer(self) -> bool: ...
    def _abort_for(self, reason: str) -> None: ...


class ProtocolTimeouts:
    """The deadlines of one connection, from its accept until `close`.

    A unix socket has only the age, because its kernel side counts no bytes.
    """

    __slots__ = ("_awaits_since", "_connection", "_shared", "_sock")

    def __init__(self, connection: TimedProtocol, sock: socket.socket, shared: ServerState) -> None:
        self._connection: TimedProtocol | None = connection
        """None once it is closed: otherwise the two would keep each other alive until the next garbage collection."""
        self._sock = sock
        self._shared = shared
        self._awaits_since = 0.0
        """When it became the peer's turn to send, as far as it is known; its silence does not count before."""
        if shared.limits.max_age is not None:
            shared.deadlines.set(self, Deadline.AGE, shared.limits.max_age)

    def start(self, tls: bool) -> None:
        """Start the deadlines that count from `connection_made`. With TLS the peer has sent its first byte already."""
        if self._connection is None or self._sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        self._awaits_since = self._shared.loop.time()
        limits, deadlines = self._shared.limits, self._shared.deadlines
        if limits.first_byte_timeout is not None and not tls:
            deadlines.set(self, Deadline.FIRST_BYTE, limits.first_byte_timeout)
        if limits.idle_timeout is not None:
            deadlines.set(self, Deadline.IDLE, limits.idle_timeout)

    def close(self) -> None:
        """Clear all deadlines of the connection (idempotent)."""
        self._connection = None
        for deadline in (Deadline.FIRST_BYTE, Deadline.IDLE, Deadline.AGE):
            self._shared.deadlines.clear(self, deadline)

    def _on_deadline(self, deadline: Deadline) -> None:
        connection = self._connection
        if connection is None:
            # Closed by another deadline that passed at the same moment.
            return
        limits = self._shared.limits
        if deadline is Deadline.AGE:
            self._expire(connection, f"open for {limits.max_age:g} s (--max-age)")
        elif deadline is Deadline.FIRST_BYTE:
            activity = read_activity(self._sock)
            if activity is not None and not activity.bytes_received:
                self._expire(connection, f"no data within {limits.first_byte_timeout:g} s (--first-byte-timeout)")
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
            self._expire(connection, f"no data for {timeout:g} s (--idle-timeout)")

    def _expire(self, connection: TimedProtocol, reason: str) -> None:
        self.close()
        connection._abort_for(reason)
