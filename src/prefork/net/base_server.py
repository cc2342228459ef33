"""`BaseServer`: listening sockets, the connections accepted from them, and the end of both.

Runs in any asyncio loop. It knows nothing of processes, names or certificates: see server.py for the public class, and
connection.py for one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import TypeAlias

from ..config import Limits
from ..core.account import Account, CloseReason, local_account
from ..core.proxy_protocol import ProxyHeader
from ..core.proxy_trust import ProxyPolicy
from ..core.time_limits import ABORT_TIMEOUT
from ..errors import ListenerError, OutOfResourcesError
from ..events import ConnectionRefused, Emit, WorkerFailed
from ..text import escape_ascii, format_address
from .acceptor import Acceptor
from .admission import Admission, HandshakeAdmission, Peer, Refusal
from .channel import DONTWAIT
from .connection import Connection, ReaderWriterConnection, StreamConnection, handler_failed
from .draining import call_drain, has_drain
from .handlers import Handler, Kind
from .listener_options import set_tcp_options
from .observers import Observers
from .protocol_connection import ProtocolConnection
from .proxy_gate import ProxyGate, claimed
from .server_state import ServerState

_ConnectionClass: TypeAlias = type[StreamConnection] | type[ProtocolConnection]
_CONNECTION_CLASSES: dict[Kind, _ConnectionClass] = {
    Kind.ASYNCIO: ReaderWriterConnection,
    Kind.CALLBACK: ReaderWriterConnection,
    Kind.PROTOCOL: ProtocolConnection,
    Kind.PROTOCOL_LIFESPAN: ProtocolConnection,
}


class BaseServerState(enum.Enum):
    """The life of a server, in this order."""

    OPEN = enum.auto()
    """Sockets may be added, and are accepted from."""
    CLOSING = enum.auto()
    """Accepts nothing more; open connections go on."""
    CLOSED = enum.auto()
    """No connection is left, and nothing is held any more."""


class BaseServer:
    """Serves `handler` on any number of listening sockets, in the running loop, as far as `admission` permits.

    `ssl_context`: speak TLS. `emit` receives the events. `account`: where connections are counted. `offer` is asked for
    each connection that was accepted: it returns True when it has passed the connection on, with its permit. `proxies`:
    each connection begins with a PROXY header of one of them.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits,
        admission: Admission,
        emit: Emit,
        ssl_context: ssl.SSLContext | None = None,
        account: Account | None = None,
        proxies: ProxyPolicy | None = None,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._admission = admission
        self._emit = emit
        self._ssl_context = ssl_context
        self._account = local_account() if account is None else account
        self._proxies = proxies
        # Chosen once: a connection without a proxy costs nothing.
        self._serve_accepted: Callable[[socket.socket, object], None] = (
            self._serve if proxies is None else ProxyGate(self, proxies).serve
        )
        self.offer: Callable[[socket.socket], bool] | None = None
        self.observers = Observers(emit)
        self._state = BaseServerState.OPEN
        self._shared: ServerState | None = None
        """Made with the first socket, in the loop that runs then."""
        self._acceptors: dict[socket.socket, Acceptor] = {}
        self._connections: dict[Connection, Peer] = {}
        self._connection_class: _ConnectionClass = StreamConnection
        self._on_ended = self._connection_ended
        """Bound once, not for each connection."""
        self._no_connections = asyncio.Event()
        self._no_connections.set()
        self._closing = asyncio.Event()
        self._failure: OSError | None = None

    # --- listening ----------------------------------------------------------------------------------------------------

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept from listening sockets. The caller keeps them: they are made non-blocking, and not closed."""
        for sock in sockets:
            self.add_socket(sock)

    def add_socket(self, sock: socket.socket) -> None:
        """Accept from one listening socket, as `add_sockets` does. Raises RuntimeError after `close`."""
        self._check_open()
        if self._shared is None:
            self._shared = ServerState(asyncio.get_running_loop(), self._limits, self._emit, account=self._account)
            self._connection_class = _CONNECTION_CLASSES.get(self._handler.kind, StreamConnection)
            if self._ssl_context is not None:
                self._admission = HandshakeAdmission(self._admission, self._shared.handshakes)
            self._admission.on_capacity(self._resume)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            set_tcp_options(sock, self._limits, counts_unsent=self._connection_class is not ProtocolConnection)
        self._acceptors[sock] = Acceptor(
            sock,
            self._accepted,
            batch=self._limits.accept_batch,
            emit=self._emit,
            on_broken=self._listener_broken,
            admission=self._admission,
        )

    def remove_socket(self, sock: socket.socket) -> None:
        """Stop accepting from `sock`; its accept queue is left alone, and open connections go on.

        Raises KeyError for a socket that was not added.
        """
        self._acceptors.pop(sock).close()

    def accept_waiting(self, limit: int, sock: socket.socket | None = None) -> None:
        """Accept now up to `limit` connections from the accept queue of `sock`, or of each listening socket.

        The last thing before `close` when nothing accepts afterwards. What is beyond a limit is refused.
        """
        for listener, acceptor in list(self._acceptors.items()):
            if sock is None or listener is sock:
                acceptor.accept_waiting(limit)

    def is_serving(self) -> bool:
        """Return whether the server accepts connections."""
        return bool(self._acceptors)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; () after `close`."""
        return tuple(self._acceptors)

    @property
    def connections(self) -> int:
        """The number of open connections. One ends when it is closed and its handler has returned."""
        return len(self._connections)

    def open_connections(self) -> list[Connection]:
        """Return the open connections. Some may end before the caller has looked at all of them."""
        return list(self._connections)

    @property
    def uses_tls(self) -> bool:
        """Whether its connections speak TLS from the first byte."""
        return self._ssl_context is not None

    @property
    def unsent(self) -> int:
        """Bytes of all streams that the kernel has not taken."""
        return 0 if self._shared is None else self._shared.buffered_bytes

    @property
    def handshakes_waiting(self) -> int:
        """TLS handshakes that wait for the CPU."""
        return 0 if self._shared is None else len(self._shared.handshakes)

    def paused_for(self) -> str:
        """Return why the server accepts nothing for now, from one of its sockets at least; "" if it accepts."""
        return next((each.paused_for for each in self._acceptors.values() if each.paused_for), "")

    def connection_descriptors(self) -> list[int]:
        """Return the descriptors of the open connections; -1 for one that is just being closed."""
        return [connection.fileno() for connection in list(self._connections)]

    def _check_open(self) -> None:
        if self._state is not BaseServerState.OPEN:
            raise RuntimeError("this server is closed; make a new one")

    # --- connections --------------------------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, address: object, tag: int = 0) -> None:
        """Serve a connection that another process has accepted and passed on; the server owns it from now on.

        The caller has taken a permit for it. `tag` is of no use here: all sockets have the same handler.
        """
        try:
            self._serve_accepted(sock, address)
        except OutOfResourcesError:
            sock.close()

    def back_off(self, seconds: float) -> None:
        """Stop accepting for some seconds; a connection that was accepted already is served."""
        for acceptor in self._acceptors.values():
            acceptor.back_off(seconds)

    def queue_length(self) -> int:
        """Return the number of connections that wait to be accepted, as far as the kernel tells."""
        return sum(acceptor.queue_length() for acceptor in self._acceptors.values())

    def _accepted(self, sock: socket.socket, address: object) -> None:
        if self.offer is None or not self.offer(sock):
            self._serve_accepted(sock, address)

    def _serve(self, sock: socket.socket, address: object, header: ProxyHeader | None = None) -> None:
        """Serve a connection from `address`; with the header of its proxy it is counted already, but for no peer."""
        assert self._shared is not None
        peer = self._admission.commit(address) if header is None else self._admission.claim(header.source)
        if peer is not None and isinstance(peer, Refusal):
            self._refuse(sock, address, peer, header)
            return
        is_observed = self.observers.are_there()
        local = self.observers.local_address(sock) if is_observed else None
        try:
            connection = self._connection_class(sock, address, self._shared, self._on_ended, header)
        except Exception as exc:
            sock.close()
            self._admission.release(peer)
            exhausted = isinstance(exc, OSError | MemoryError)
            reason = CloseReason.DESCRIPTORS if exhausted else CloseReason.HANDLER_FAILED
            self._account.closed(reason)
            self.observers.refused(*claimed(address, header), local, reason)
            if isinstance(exc, OSError | MemoryError):
                # The kernel has no memory to watch it, so the next connection would fail as well.
                raise _out_of_resources(exc) from exc
            self._emit(handler_failed(format_address(claimed(address, header)[0]), exc))
            return
        self._connections[connection] = peer
        self._no_connections.clear()
        if not is_observed or self.observers.opened(connection, local):
            connection.start(self._shared, self._handler, self._ssl_context)
        else:
            self._connection_ended(connection)

    def _refuse(
        self, sock: socket.socket, address: object, refusal: Refusal, header: ProxyHeader | None = None
    ) -> None:
        client, proxy = claimed(address, header)
        self._account.closed(refusal.counted)
        self.observers.refused(client, proxy, self.observers.local_address(sock), refusal.counted)
        self._emit(ConnectionRefused(escape_ascii(format_address(client)), refusal.reason))
        # A proxy that has not sent its header would pass it to a client of any protocol, or take it for nonsense.
        if self._limits.refusal and self._ssl_context is None and (self._proxies is None or header is not None):
            # What does not fit into the buffer of a new socket is not worth waiting for.
            with contextlib.suppress(OSError):
                sock.send(self._limits.refusal, DONTWAIT)
        sock.close()

    def _connection_ended(self, connection: Connection) -> None:
        if connection not in self._connections:
            # Counted at the end of the drain, before its handler returned.
            return
        reason, seconds = connection.close_reason(), connection.time_open()
        self._account.closed(reason, seconds, connection.was_silent())
        self._admission.release(self._connections.pop(connection))
        if not self._connections:
            self._no_connections.set()
        self._resume()
        # Last: whatever it does, the connection is gone.
        self.observers.ended(connection, seconds, reason)

    def _resume(self) -> None:
        for acceptor in self._acceptors.values():
            acceptor.resume()

    def _listener_broken(self, exc: OSError) -> None:
        self._failure = exc
        self.close()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def serve_forever(self) -> None:
        """Wait until `close()`. Raises ListenerError if a listening socket itself has failed."""
        await self._closing.wait()
        if self._failure is not None:
            raise ListenerError(*self._failure.args) from self._failure

    def close(self) -> None:
        """Stop accepting, at once (idempotent). Open connections go on; `wait_closed` waits for them.

        Connections in the kernel's queue stay there, for other processes that hold the socket.
        """
        if self._state is not BaseServerState.OPEN:
            return
        self._state = BaseServerState.CLOSING
        for acceptor in self._acceptors.values():
            acceptor.close()
        self._acceptors.clear()
        self._admission.close()
        self._closing.set()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and all of its connections have ended. There is no timeout: see `drain`."""
        await self._closing.wait()
        await self._no_connections.wait()
        self._release()

    def close_clients(self) -> None:
        """Close all connections: what was written is sent, and handlers see the end of their input."""
        for connection in list(self._connections):
            connection.close()

    def abort_clients(self) -> None:
        """Abort all connections: close their sockets at once, and cancel their handlers."""
        for connection in list(self._connections):
            connection.abort(CloseReason.DRAIN)

    async def drain_bounded(
        self, timeout: float | None, on_wait: Callable[[asyncio.Timeout], object] | None = None
    ) -> int:
        """Close, tell the service, and wait up to `timeout` seconds for all connections and its `drain()` to end.

        None waits without limit. `on_wait` gets the timeout of the wait, which it may shorten meanwhile.
        Streams are told by `stream.draining`, a lifespan object and protocols by their `drain()`. Abort what is left of
        the connections, and return their number. Cancelling it aborts what is open.
        """
        self.close()
        if self._shared is None or self._state is BaseServerState.CLOSED:
            return 0
        draining = self.tell_draining()
        began = asyncio.get_running_loop().time()
        try:
            await self._wait_drained(draining, timeout, on_wait)
        finally:
            aborted = len(self._connections)
            self.abort_clients()
            if draining is not None and not draining.done():
                draining.cancel()
                if timeout != 0:
                    waited = asyncio.get_running_loop().time() - began
                    self._drain_failed(TimeoutError(f"it did not return within {waited:.3g} s"))
            try:
                if aborted:
                    await self._wait_drained(None, ABORT_TIMEOUT)
            finally:
                self._count_rest()
                self._release()
        return aborted

    def tell_draining(self) -> asyncio.Task[None] | None:
        """Tell the service and its connections, once, that the server drains: the part of `drain` that does not wait.

        Return the task of a lifespan object's `drain()`, if it is one; the caller ends it.
        """
        shared = self._shared
        if shared is None or shared.draining.is_set():
            return None
        shared.draining.set()
        self.observers.draining()
        draining = None
        if has_drain(self._handler.lifespan):
            draining = call_drain(self._handler.lifespan, shared, self._drain_failed)
        for connection in list(self._connections):
            connection.drain()
        return draining

    def _count_rest(self) -> None:
        """Count the aborted connections whose handlers swallow their cancellation, and would go on for ever."""
        for connection in list(self._connections):
            if connection.fileno() < 0:
                self._connection_ended(connection)

    def _drain_failed(self, exc: BaseException) -> None:
        failed = handler_failed("", exc)
        self._emit(WorkerFailed("drain() failed", failed.error, failed.traceback))

    async def _wait_drained(
        self,
        draining: asyncio.Task[None] | None,
        timeout: float | None,
        on_wait: Callable[[asyncio.Timeout], object] | None = None,
    ) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout) as bound:
                if on_wait is not None:
                    on_wait(bound)
                await self._no_connections.wait()
                if draining is not None:
                    await asyncio.wait({draining})

    def _release(self) -> None:
        if self._state is not BaseServerState.CLOSED:
            self._state = BaseServerState.CLOSED
            if self._shared is not None:
                self._shared.close()


def _out_of_resources(exc: OSError | MemoryError) -> OutOfResourcesError:
    code = exc.errno if isinstance(exc, OSError) and exc.errno else errno.ENOMEM
    cure = " for an epoll watch (raise fs.epoll.max_user_watches)" if code == errno.ENOSPC else ""
    return OutOfResourcesError(code, f"{os.strerror(code)}{cure}")
