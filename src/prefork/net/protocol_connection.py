"""One connection whose handler is an asyncio protocol, from accept to close, on the loop's own transport.

A protocol that fails while it is made ends only its own connection. The number of connections and their end are
decided in base_server.py; connection.py is for coroutines.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from ..core.account import CloseReason, Handshake
from ..core.ended_connection import EndedConnection
from ..core.proxy_protocol import ProxyHeader
from ..events import ConnectionAborted, HandshakeFailed
from ..system.tcp_info import Totals, read_totals
from ..text import describe_error, escape_ascii, format_address
from . import subscribers
from .connection import handler_failed, handshake_outcome
from .draining import call_drain, has_drain
from .handlers import Handler
from .open_connection import OpenConnection
from .protocol_timeouts import make_timeouts
from .proxied_transport import with_extra_info
from .server_state import ServerState


class ClosingHookSocket(socket.socket):
    """A socket with a callback for its close: the one moment that the transports of all loops have in common."""

    on_closing: Callable[[], None] | None = None
    on_closed: Callable[[], None] | None = None

    def close(self) -> None:
        if self.on_closing is not None:
            on_closing, self.on_closing = self.on_closing, None
            on_closing()
        super().close()
        self._call_hook()

    def detach(self) -> int:
        fd = super().detach()
        self._call_hook()
        return fd

    def _call_hook(self) -> None:
        if self.on_closed is not None:
            on_closed, self.on_closed = self.on_closed, None
            on_closed()


class ProxiedSocket(ClosingHookSocket):
    """The socket of a connection whose proxy has told the peer's address: transports take that for their peername."""

    claimed: object = None

    def getpeername(self) -> Any:
        return super().getpeername() if self.claimed is None else self.claimed


class _ConnectionMadeGuard(asyncio.Protocol):
    """Stands in for the service's protocol until `connection_made`, and ends the connection if that call fails.

    asyncio only logs the failure, and goes on with a protocol that does not know its transport.
    """

    def __init__(self, protocol: Any, connection: ProtocolConnection) -> None:
        self._protocol = protocol
        self._connection = connection

    def connection_made(self, transport: Any) -> None:
        transport.set_protocol(self._protocol)
        try:
            self._protocol.connection_made(self._connection._shown(transport))
        except Exception as exc:
            self._connection._failed(exc)
            transport.abort()
        else:
            self._connection._made(transport)


class ProtocolConnection:
    """A connection with an asyncio protocol as its handler, on the loop's own transport.

    `done` is called once: when the protocol has its transport, or never gets one, its `drain()` has ended if it was
    called, and the socket is closed.
    """

    __slots__ = (
        "_address",
        "_began",
        "_done",
        "_drain",
        "_fd",
        "_header",
        "_number",
        "_open",
        "_peer",
        "_protocol",
        "_proxy",
        "_reason",
        "_sock",
        "_state",
        "_timeouts",
        "_tls",
        "_totals",
        "_transport",
        "task",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: object,
        state: ServerState,
        done: Callable[[ProtocolConnection], None],
        header: ProxyHeader | None = None,
    ) -> None:
        # Without memory for the transport's epoll watch asyncio only logs it and the peer waits forever; libuv aborts.
        self._fd = sock.fileno()
        state.poller.reserve(self._fd)
        self._header = header
        self._proxy: object = None
        """The address of the proxy that has sent `_header`."""
        if header is not None:
            self._proxy = address
            if header.source is not None:
                address = header.source
        self._address = format_address(address)
        self._peer = address
        self._number = next(state.ids)
        self._state = state
        self._done = done
        self._open = 2
        """What has to end yet: the task, the socket, `drain()`."""
        self._protocol: Any = None
        # Any, because uvloop's transports are no subclass of asyncio.Transport.
        self._transport: Any = None
        socket_class = ClosingHookSocket if header is None else ProxiedSocket
        self._sock = socket_class(sock.family, sock.type, sock.proto, fileno=sock.detach())
        if isinstance(self._sock, ProxiedSocket):
            self._sock.claimed = address
        self._sock.setblocking(False)
        self._sock.on_closing = self._socket_closing
        self._sock.on_closed = self._socket_closed
        self._timeouts = make_timeouts(self, self._sock, state, header is not None)
        state.on_protocol_failure(self._fd, self._callback_failed)
        self._began = state.loop.time()
        self._reason: CloseReason | None = None
        self._totals: Totals | None = None
        """What came and went, once the socket is closed."""
        self._tls = ""
        self.task: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None

    def start(self, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        self.task = state.callback_context.copy().run(state.loop.create_task, self._run(handler, ssl_context))
        self.task.add_done_callback(self._task_ended, context=state.callback_context)

    def was_silent(self) -> bool:
        before, totals = 0 if self._header is None else self._header.length, self._totals
        return totals is not None and totals.received <= before and not totals.sent

    def close_reason(self) -> CloseReason:
        return self._reason or CloseReason.DONE

    def time_open(self) -> float:
        return self._state.loop.time() - self._began

    def _note(self, reason: CloseReason) -> None:
        """Keep why the connection ends, unless that is known already."""
        self._reason = self._reason or reason

    def _socket_closing(self) -> None:
        """Ask the kernel, the last time it can tell, what came and went, and whether the peer has reset it."""
        totals = self._totals = read_totals(self._sock)
        if totals is not None:
            self._state.account.transferred(totals.received, totals.sent)
            # In a handshake it is one that failed, which `_run` notes.
            if totals.is_reset and self._transport is not None:
                self._note(CloseReason.PEER_RESET)

    def _socket_closed(self) -> None:
        self._state.on_protocol_failure(self._fd, None)
        if self._timeouts is not None:
            self._timeouts.close()
        self._ended()

    def _task_ended(self, _task: object) -> None:
        if self._transport is None:
            # Cancelled before its first step, in which nothing else would close the socket.
            self._sock.close()
        self._ended()

    def _ended(self, _task: object = None) -> None:
        self._open -= 1
        if not self._open:
            self._done(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def describe(self, uses_tls: bool) -> OpenConnection:
        transport, fd = self._transport, self._sock.fileno()
        unsent, tls, phase = 0, "", "handshake" if uses_tls and transport is None else "open"
        if transport is not None and fd >= 0:
            unsent = transport.get_write_buffer_size()
            connection = transport.get_extra_info("ssl_object")
            tls = "" if connection is None else connection.version() or ""
        if fd < 0 or (transport is not None and transport.is_closing()):
            phase = "closing"
        return OpenConnection(self._number, fd, self._peer, phase, self._began, unsent, tls, self._proxy)

    def describe_end(self, local: object, seconds: float, reason: CloseReason) -> EndedConnection:
        totals = self._totals
        received, sent = (0, 0) if totals is None else (totals.received, totals.sent)
        tls, proxy = self._tls, self._proxy
        return EndedConnection(self._number, self._peer, local, seconds, received, sent, tls, reason, proxy)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        else:
            self.abort(CloseReason.DRAIN)

    def abort(self, reason: CloseReason) -> None:
        self._note(reason)
        if self._drain is not None:
            self._drain.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    def drain(self) -> None:
        """Call `drain()` of the protocol, if it has one. A protocol that has no transport yet is told when it has."""
        if self._transport is None:
            return
        # The service may have replaced its first protocol; a transport below it has one that belongs to no service.
        for protocol in (self._transport.get_protocol(), self._protocol):
            if has_drain(protocol):
                # Before the call, which may close the socket.
                self._open += 1
                self._drain = call_drain(protocol, self._state, self._failed)
                if self._drain is None:
                    self._ended()
                else:
                    self._drain.add_done_callback(self._ended, context=self._state.callback_context)
                return

    async def _run(self, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        try:
            self._protocol = protocol = handler.call()
            if not hasattr(protocol, "connection_made"):
                raise TypeError(f"the protocol factory returned {type(protocol).__name__}, not an asyncio.Protocol")
        except GeneratorExit:
            raise
        except BaseException as exc:
            self._failed(exc)
            self._sock.close()
            return
        limits = self._state.limits
        timeouts: dict[str, float] = {}
        if ssl_context is not None:
            timeouts["ssl_handshake_timeout"] = limits.handshake_timeout
            timeouts["ssl_shutdown_timeout"] = limits.tls_shutdown_timeout
        self._state.poller.release(self._sock.fileno())
        try:
            self._transport, _ = await self._state.loop.connect_accepted_socket(
                lambda: _ConnectionMadeGuard(protocol, self), self._sock, ssl=ssl_context, **timeouts
            )
        except asyncio.CancelledError:
            self._sock.close()
        except OSError as exc:
            timed_out = isinstance(exc, ConnectionAbortedError) and "handshake is taking longer" in str(exc)
            self._note(CloseReason.HANDSHAKE_TIMEOUT if timed_out else CloseReason.HANDSHAKE_FAILED)
            outcome = Handshake.TIMEOUT if timed_out else Handshake.FAILED
            self._state.account.handshake(outcome, self.time_open())
            self._sock.close()
            self._state.emit(HandshakeFailed(escape_ascii(self._address), escape_ascii(describe_error(exc))))

    def _shown(self, transport: Any) -> Any:
        """Return the transport as its protocol sees it: behind a proxy, with what the proxy told."""
        if self._header is None:
            return transport
        facts = {"peername": self._peer, "proxy": self._header, "proxy_peer": self._proxy}
        return with_extra_info(transport, facts, self._sock)

    def _made(self, transport: Any) -> None:
        self._transport = transport
        connection = transport.get_extra_info("ssl_object")
        if connection is not None:
            self._tls = connection.version()
            outcome = handshake_outcome(self._tls, connection.session_reused)
            self._state.account.handshake(outcome, self.time_open())
        if self._timeouts is not None:
            self._timeouts.start(transport)
        if self._state.draining.is_set():
            self.drain()

    def _callback_failed(self, exc: BaseException) -> None:
        """Count the failure, which the loop logs."""
        self._note(CloseReason.HANDLER_FAILED)
        self._state.account.handler_failed()
        if subscribers.callbacks:
            subscribers.tell_failed(self._number, self._address, exc, self._state.emit)

    def _failed(self, exc: BaseException) -> None:
        self._state.emit(handler_failed(self._address, exc))
        self._callback_failed(exc)

    # --- what its deadlines ask and do --------------------------------------------------------------------------------

    def _awaits_peer(self) -> bool:
        """Return whether it is the peer's turn: the protocol reads, and everything that it wrote has been sent."""
        transport = self._transport
        return bool(transport.is_reading() and not transport.get_write_buffer_size())

    def _abort_for(self, what: str, reason: CloseReason) -> None:
        self._state.emit(ConnectionAborted(escape_ascii(self._address), what))
        self.abort(reason)
