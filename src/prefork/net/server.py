"""`TCPServer`: listening sockets, the connections accepted from them, and how both come to an end.

Runs inside any asyncio loop and knows nothing of processes. What happens on one connection is in `connection.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import socket
import ssl
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from ..config import TLS, Limits
from ..errors import ListenerFailed, OutOfResources
from ..events import ConnectionRefused, Emit, log
from ..system.sockets import bind_sockets
from ..system.tls_contexts import build_context
from ..text import escape_ascii, format_address
from .acceptor import Acceptor
from .admission import Admission, HandshakeAdmission, LocalAdmission
from .channel import DONTWAIT
from .connection import Connection, ProtocolConnection, StreamConnection, handler_failed
from .handlers import Handler, Kind, classify
from .server_state import ServerState
from .tls import prepare_context

#: How long tasks may take to end after their connections were aborted and they were cancelled.
GRACE = 1.0


class State(enum.Enum):
    """The life of a server."""

    SERVING = enum.auto()
    STOPPED = enum.auto()
    """Accepts nothing more; open connections go on."""
    CLOSED = enum.auto()


class TCPServer:
    """Serves `handler` on any number of listening sockets, in the running asyncio loop.

    `handler` is what `prefork serve` takes as its target: a stream handler, an asyncio streams handler, a protocol
    class or factory, or a lifespan object. `tls` is a certificate and key, or a context of your own. `emit` receives
    what there is to observe; by default it goes to the logger `prefork`.

        async with TCPServer(handle) as server:
            server.listen(9000)
            await server.serve_forever()

    Leaving the block drains the server; leaving it by an exception aborts what is open. Raises ServiceError for a
    handler that is none, ConfigError for a certificate that cannot be used.
    """

    def __init__(
        self,
        handler: object,
        *,
        tls: TLS | ssl.SSLContext | None = None,
        limits: Limits | None = None,
        emit: Emit | None = None,
        gate: Admission | None = None,
    ) -> None:
        self._handler: Handler = classify(handler)
        self._limits = Limits() if limits is None else limits
        self._emit = log if emit is None else emit
        self._context = build_context((tls,), self._emit) if isinstance(tls, TLS) else tls
        if self._context is not None:
            prepare_context(self._context)
        self._gate: Admission = LocalAdmission(self._limits) if gate is None else gate
        self._state = State.SERVING
        self._hub: ServerState | None = None
        self._acceptors: dict[socket.socket, Acceptor] = {}
        self._sockets: list[socket.socket] = []
        self._own_sockets: list[socket.socket] = []
        self._connections: dict[Connection, bytes | None] = {}
        """With the peer that each counts for."""
        self._on_ended = self._ended
        """Bound once, not for each connection."""
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopped = asyncio.Event()
        self._failure: OSError | None = None

    # --- listening ----------------------------------------------------------------------------------------------------

    def listen(self, port: int, address: str | None = None, backlog: int = 128) -> None:
        """Bind `port` on `address` (None: all interfaces, IPv4 and IPv6) and accept; 0: any free port (`sockets`).

        Raises BindError; nothing is bound then. These sockets are closed by `stop()`.
        """
        self._refuse_unless_serving()
        sockets = bind_sockets(port, address, backlog=backlog)
        self._own_sockets += sockets
        self.add_sockets(sockets)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept from listening sockets that stay their owner's: they are not closed, but made non-blocking."""
        for sock in sockets:
            self.add_socket(sock)

    def add_socket(self, sock: socket.socket) -> None:
        """`add_sockets` for one."""
        self._refuse_unless_serving()
        if self._hub is None:
            self._hub = ServerState(asyncio.get_running_loop(), self._limits, self._emit)
            if self._context is not None:
                self._gate = HandshakeAdmission(self._gate, self._hub.turnstile)
            self._gate.on_room(self._resume)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            _set_tcp_options(sock, self._limits)
        self._acceptors[sock] = Acceptor(
            sock,
            self._accepted,
            batch=self._limits.accept_batch,
            emit=self._emit,
            on_broken=self._listener_broken,
            gate=self._gate,
        )
        self._sockets.append(sock)

    def remove_socket(self, sock: socket.socket) -> None:
        """Accept from `sock` no more. What waits in its queue stays there; what was accepted goes on. Raises KeyError
        for a socket that was not added."""
        self._acceptors.pop(sock).close()
        self._sockets.remove(sock)

    def _refuse_unless_serving(self) -> None:
        if self._state is not State.SERVING:
            raise RuntimeError("this server has been stopped; make a new one")

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(self._sockets)

    @property
    def connections(self) -> int:
        """How many connections are open: accepted, and not both closed and left by their handler."""
        return len(self._connections)

    def _accepted(self, sock: socket.socket, address: object) -> None:
        assert self._hub is not None
        refusal, peer = self._gate.took(address)
        if refusal:
            self._refuse(sock, address, refusal)
            return
        kind = ProtocolConnection if self._handler.kind is Kind.PROTOCOL else StreamConnection
        try:
            connection = kind(sock, address, self._hub, self._on_ended)
        except Exception as exc:
            sock.close()
            self._gate.ended(peer)
            if isinstance(exc, OSError | MemoryError):
                # It cannot be registered with the kernel: the next one could not be, either.
                raise _no_room(exc) from exc
            self._emit(handler_failed(format_address(address), exc))
            return
        self._connections[connection] = peer
        self._empty.clear()
        connection.start(self._hub, self._handler, self._context)

    def _refuse(self, sock: socket.socket, address: object, reason: str) -> None:
        self._emit(ConnectionRefused(escape_ascii(format_address(address)), reason))
        if self._limits.refusal and self._context is None:
            # What does not fit into the buffer of a fresh socket is not worth waiting for.
            with contextlib.suppress(OSError):
                sock.send(self._limits.refusal, DONTWAIT)
        sock.close()

    def _ended(self, connection: Connection) -> None:
        self._gate.ended(self._connections.pop(connection, None))
        if not self._connections:
            self._empty.set()
        self._resume()

    def _resume(self) -> None:
        """There may be room."""
        for acceptor in self._acceptors.values():
            acceptor.resume()

    def _listener_broken(self, exc: OSError) -> None:
        self._failure = exc
        self.stop()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def serve_forever(self) -> None:
        """Returns after `stop()`. Raises ListenerFailed if a listening socket itself has failed. Cancelling it stops
        nothing by itself."""
        await self._stopped.wait()
        if self._failure is not None:
            raise ListenerFailed(*self._failure.args) from self._failure

    def accept_waiting(self, most: int, sock: socket.socket | None = None) -> None:
        """Accept now what waits in the queue of `sock`, or of each listening socket, up to `most` connections each;
        refuse those that are beyond a limit. The last thing before `stop`."""
        for listener, acceptor in list(self._acceptors.items()):
            if sock is None or listener is sock:
                acceptor.accept_waiting(most)

    def stop(self) -> None:
        """Stop accepting, at once; open connections go on. What waits in the kernel's queue stays there, for whoever
        else holds the socket. May be called again."""
        if self._state is not State.SERVING:
            return
        self._state = State.STOPPED
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._acceptors.clear()
        for sock in self._own_sockets:
            sock.close()
        self._own_sockets.clear()
        self._sockets.clear()
        self._gate.close()
        self._stopped.set()

    async def drain(self, timeout: float = 30.0) -> int:
        """Stop, tell the handlers (`stream.draining`), wait up to `timeout` seconds until all connections have ended,
        and abort the rest. Returns how many that were. The server cannot be used any more afterwards.

        Cancelling it aborts what is open.
        """
        self.stop()
        if self._hub is None or self._state is State.CLOSED:
            return 0
        self._hub.drain_asked.set()
        try:
            await self._wait_empty(timeout)
        finally:
            aborted = self._abort()
            try:
                if aborted:
                    await self._wait_empty(GRACE)
            finally:
                self._close()
        return aborted

    async def _wait_empty(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._empty.wait()

    def _abort(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            connection.abort()
        return len(connections)

    def _close(self) -> None:
        self._state = State.CLOSED
        if self._hub is not None:
            self._hub.close()

    async def __aenter__(self) -> Self:
        await self._handler.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.drain(30.0 if kind is None else 0)
        finally:
            await self._handler.stop()


def _no_room(exc: OSError | MemoryError) -> OutOfResources:
    code = exc.errno if isinstance(exc, OSError) and exc.errno else errno.ENOMEM
    cure = " for an epoll watch (raise fs.epoll.max_user_watches)" if code == errno.ENOSPC else ""
    return OutOfResources(code, f"{os.strerror(code)}{cure}")


#: Probes that go unanswered until a peer is given up, and the seconds between them.
_PROBES = 4
_PROBE_INTERVAL = 15


def _set_tcp_options(listener: socket.socket, limits: Limits) -> None:
    """On the listener, because Linux hands them down (tcp(7)); on each connection they would be a call each."""
    tcp = socket.IPPROTO_TCP
    # With Nagle's algorithm a corked answer's last segment waits for the peer's delayed acknowledgement, 40 ms.
    listener.setsockopt(tcp, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # What the kernel has taken and the peer has not: our own deadline does not see it.
        listener.setsockopt(tcp, socket.TCP_USER_TIMEOUT, max(1, min(int(limits.write_timeout * 1000), 2**31 - 1)))
    if limits.keepalive is not None and hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, min(int(limits.keepalive), 32767)))
        listener.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, min(_PROBE_INTERVAL, int(limits.keepalive / _PROBES))))
        listener.setsockopt(tcp, socket.TCP_KEEPCNT, _PROBES)
