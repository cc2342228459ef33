"""Where the live view gets its readings from, and how it ends a connection.

Blocking: it is called in a thread of its own, for one request at a time. Only this file of `top` knows a socket.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ...core.control_protocol import Request
from ...errors import ServiceError
from ...text import count_of
from ..connections import Connections, read_connections
from ..joining import Row
from ..kicking import AmbiguousIdError, kick_id
from ..servers import Attachment, ask_supervisor
from .facts import Snapshot, read_status

#: What log lines name as the sender of a kick.
BY = "prefork top"
#: Seconds until a worker that did not answer gets another connection, so that a worker that hangs collects few.
RETRY = 5.0
#: Seconds after which workers may have closed a connection that was not used; they do after 30.
_IDLE = 20.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at a server has found. `connections` is None if nothing asked for them."""

    snapshot: Snapshot
    connections: Connections | None = None


class Source(Protocol):
    """A running server. Every method raises PreforkError or OSError if there is no answer."""

    def read(self, connections: bool) -> Reading: ...
    def kick(self, connection: Row) -> str: ...


class ServerSource:
    """Asks the supervisor on its control socket, and the workers on consoles that stay open between two readings.

    `find` returns the path of the socket. It is called for each reading, because a server that was started again may
    have another one.
    """

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find
        self._attachment: Attachment | None = None
        self._attached_at = self._used_at = 0.0

    def read(self, connections: bool) -> Reading:
        """Return the status, and if asked for the connections."""
        path = self._find()
        reply = ask_supervisor(path, Request("status"))
        snapshot = read_status(reply, time.monotonic(), time.time())
        if not connections:
            self.close()
            return Reading(snapshot)
        try:
            return Reading(snapshot, self._connections(path, snapshot))
        except BaseException:
            self.close()
            raise

    def _connections(self, path: str, snapshot: Snapshot) -> Connections:
        found = read_connections(self._attach(path, snapshot))
        self._used_at = time.monotonic()
        return found

    def _attach(self, path: str, snapshot: Snapshot) -> Attachment:
        """Return connections to the consoles of the workers that there are now."""
        if self._attachment is not None and self._is_outdated(self._attachment, snapshot):
            self.close()
        if self._attachment is None:
            self._attachment = Attachment(path)
            self._attached_at = time.monotonic()
        return self._attachment

    def _is_outdated(self, attachment: Attachment, snapshot: Snapshot) -> bool:
        now = time.monotonic()
        if {each.pid for each in attachment.workers} != {worker.pid for worker in snapshot.workers if worker.pid}:
            return True
        lost = any(each.has_console and each.sock is None for each in attachment.workers)
        return now - self._used_at > _IDLE or (lost and now - self._attached_at > RETRY)

    def kick(self, connection: Row) -> str:
        """End exactly this connection; return in words what was done. Raises ServiceError if it cannot be named."""
        if not connection.id:
            raise ServiceError("the connection has no ID: its worker does not answer, or runs a program")
        with Attachment(self._find()) as attachment:
            try:
                done = kick_id(attachment, connection.id, BY, connection.pid)
            except AmbiguousIdError as exc:
                raise ServiceError(str(exc)) from None
        if done.silent:
            raise ServiceError("its worker does not answer; it may still do it")
        if not done.count:
            return f"{connection.id} had ended already"
        return f"kicked {count_of(done.count, 'connection')}: {connection.id}, {connection.peer}"

    def close(self) -> None:
        """Close the connections to the workers (idempotent)."""
        if self._attachment is not None:
            with contextlib.suppress(OSError):
                self._attachment.close()
            self._attachment = None
