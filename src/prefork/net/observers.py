"""What a server tells of its connections to those that observe it: the access log, and subscribers of the service.

Without them a connection costs two comparisons. How the events reach the service is in `subscribers.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.account import CloseReason
from ..core.ended_connection import EndedConnection
from ..events import Emit
from . import subscribers

if TYPE_CHECKING:
    from .connection import Connection


class Observers:
    """The observers of one server. Its methods never raise."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.on_ended: Callable[[EndedConnection], object] | None = None
        """Called once for each connection, and never raises: the access log."""
        self._local_addresses: dict[Connection, object] = {}
        """Of open connections, because a closed socket has none."""

    def are_there(self) -> bool:
        return bool(subscribers.callbacks) or self.on_ended is not None

    def local_address(self, sock: socket.socket) -> object:
        """Return the local address of a new connection; None if it is closed, and for one that nothing observes."""
        if not self.are_there():
            return None
        try:
            return sock.getsockname()
        except OSError:
            return None

    def opened(self, connection: Connection, local: object) -> bool:
        """Tell of a new connection. Return whether it is still open: a subscriber may have aborted it."""
        if local is not None:
            self._local_addresses[connection] = local
        if not subscribers.callbacks:
            return True
        found = connection.describe(False)
        subscribers.tell_opened(found.number, found.address, local, found.proxy, self._emit)
        return connection.describe(False).fd >= 0

    def refused(self, address: object, proxy: object, local: object, reason: CloseReason) -> None:
        """Tell of a connection that was closed before it was served."""
        self._tell_ended(EndedConnection(0, address, local, 0.0, 0, 0, "", reason, proxy))

    def ended(self, connection: Connection, seconds: float, reason: CloseReason) -> None:
        # Also if the observers have gone meanwhile.
        local = self._local_addresses.pop(connection, None) if self._local_addresses else None
        if self.on_ended is not None or subscribers.callbacks:
            self._tell_ended(connection.describe_end(local, seconds, reason))

    def draining(self) -> None:
        if subscribers.callbacks:
            subscribers.tell_draining(self._emit)

    def _tell_ended(self, ended: EndedConnection) -> None:
        if self.on_ended is not None:
            self.on_ended(ended)
        if subscribers.callbacks:
            subscribers.tell_closed(ended, self._emit)
