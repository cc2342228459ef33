"""The control socket: connections that are read, answered and bounded, in the supervisor's own poll loop.

Knows bytes and deadlines. `control_commands.py` carries the requests out.
"""

from __future__ import annotations

import array
import select
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..core.control_protocol import REQUEST_LIMIT, BadRequest, Request, decode_request, encode_reply
from ..system.control_client import may_control
from ..system.descriptors import Reserve
from ..system.processes import RESOURCE_ERRNOS

#: Open connections, besides those that wait for an outcome; further clients wait in the kernel's queue.
MAX_CONNECTIONS = 16
#: Seconds until the next accept after one failed for lack of a descriptor.
ACCEPT_RETRY = 0.5
#: Descriptors that are kept for a client when no other is left: one for its connection, the rest for what it asks.
RESERVED_DESCRIPTORS = 4
#: Seconds that a client has to send its request and to read the reply.
IO_TIMEOUT = 5.0


@dataclass(eq=False)
class ControlConnection:
    """One client: it sends a request, perhaps waits, and gets a reply."""

    sock: socket.socket
    deadline: float
    received: bytes = b""
    unsent: bytes = b""
    descriptors: list[socket.socket] = field(default_factory=list)
    """Sockets that go with the first byte of the reply."""
    waiting: bool = False
    """Its request is being carried out, for which there is no deadline."""
    replied: bool = False
    """Nothing follows what is unsent."""

    def close(self) -> None:
        self.release_descriptors()
        self.sock.close()

    def release_descriptors(self) -> None:
        while self.descriptors:
            self.descriptors.pop().close()


class ControlSocket:
    """Serves `listener`, and closes it in the end. `close_in_child` gets everything that no child may hold."""

    def __init__(self, listener: socket.socket, close_in_child: Callable[[Any], object]) -> None:
        self._listener = listener
        self._close_in_child = close_in_child
        self.listening = True
        """Whether to accept connections. Another supervisor may hold the same socket."""
        self._connections: dict[int, ControlConnection] = {}
        self._accept_at = 0.0
        self._reserve = Reserve(RESERVED_DESCRIPTORS, close_in_child)
        close_in_child(listener)

    def interests(self, now: float) -> dict[int, int]:
        wanted = {fd: select.POLLOUT if each.unsent else select.POLLIN for fd, each in self._connections.items()}
        if self._has_capacity() and now >= self._accept_at:
            wanted[self._listener.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """Return when a connection has taken too long, or accepting is tried again."""
        times = [each.deadline for each in self._connections.values() if not each.waiting]
        if self._has_capacity() and now < self._accept_at:
            times.append(self._accept_at)
        return min(times, default=None)

    def _has_capacity(self) -> bool:
        return self.listening and sum(not each.waiting for each in self._connections.values()) < MAX_CONNECTIONS

    def receive_requests(self, ready: set[int], now: float) -> list[tuple[ControlConnection, Request]]:
        """Accept, receive and send. Return the requests that are complete; `ready` are descriptors that poll named."""
        if self.listening and self._listener.fileno() in ready:
            self._accept(now)
        requests = []
        for fd, each in list(self._connections.items()):
            if fd in ready and each.unsent:
                self._send(each)
            elif fd in ready:
                request = self._receive(each)
                if request is not None:
                    requests.append((each, request))
            if not each.waiting and now >= each.deadline:
                self._end(each)
        return requests

    def reply(
        self, connection: ControlConnection, value: dict[str, Any], descriptors: Iterable[socket.socket] = ()
    ) -> None:
        """Send a reply, and close the connection once the client has read it. Nothing, if the client has left.

        The client gets `descriptors`, which are closed here.
        """
        connection.descriptors += descriptors
        if connection.sock.fileno() < 0:
            connection.release_descriptors()
            return
        connection.waiting = False
        connection.replied = True
        connection.unsent += encode_reply(value)
        self._send(connection)

    def send(self, connection: ControlConnection, value: dict[str, Any]) -> None:
        """Send a line before the reply, unless the client has not read the one before."""
        if connection.sock.fileno() >= 0 and not connection.unsent:
            connection.unsent = encode_reply(value)
            self._send(connection)

    def close(self) -> None:
        for each in list(self._connections.values()):
            self._end(each)
        self._reserve.close()
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno in RESOURCE_ERRNOS and not isinstance(exc, BlockingIOError):
                if self._reserve.close():
                    self._accept(now)
                    return
                # The listener stays readable, so polling it would keep this process busy with nothing.
                self._accept_at = now + ACCEPT_RETRY
            return
        try:
            sock.setblocking(False)
            allowed = may_control(sock)
        except OSError:
            allowed = False
        if not allowed:
            sock.close()
            return
        connection = ControlConnection(sock, now + IO_TIMEOUT)
        self._close_in_child(connection)
        self._connections[sock.fileno()] = connection

    def _receive(self, connection: ControlConnection) -> Request | None:
        try:
            data = connection.sock.recv(REQUEST_LIMIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data or connection.waiting:
            # The client has left, or sends more than one request.
            self._end(connection)
            return None
        connection.received += data
        line, newline, _ = connection.received.partition(b"\n")
        if not newline:
            if len(line) > REQUEST_LIMIT:
                self.reply(connection, {"ok": False, "error": "the request is too long"})
            return None
        try:
            request = decode_request(line)
        except BadRequest as exc:
            self.reply(connection, {"ok": False, "error": str(exc)})
            return None
        connection.waiting = True
        return request

    def _send(self, connection: ControlConnection) -> None:
        try:
            rights = array.array("i", [each.fileno() for each in connection.descriptors])
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            sent = connection.sock.sendmsg([connection.unsent], ancillary)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection)
            return
        connection.release_descriptors()
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent and connection.replied:
            self._end(connection)

    def _end(self, connection: ControlConnection) -> None:
        self._connections.pop(connection.sock.fileno(), None)
        connection.close()
        if not self._connections:
            self._reserve.fill()
