"""One accepted connection from its first moment to its last: handshake, handler, close, and whatever goes wrong.

Nothing that a handler does gets past here: it may raise, exit, swallow its cancellation or return early, and costs its
own connection alone. How many connections there are, and when they have to end, is the server's business.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import ConnectionTimedOut, LineTooLong
from ..events import ConnectionAborted, ConnectionLost, HandlerFailed, HandshakeFailed
from ..system.signals import noop_handler
from ..text import describe_error, escape_ascii, format_address
from .handlers import Handler, Kind
from .server_state import ServerState
from .stream import Stream

_TRACEBACK_LINES = 60
#: Handlers of SIGINT that raise no KeyboardInterrupt: one that comes up all the same is the service's own.
_NO_INTERRUPT = (signal.SIG_IGN, noop_handler)
#: What a handler raises, if it lets it pass, when its peer left or broke the rules: no bug of the service.
_PEERS_FAULT = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, LineTooLong)


class Connection(Protocol):
    """What the server needs of each."""

    def start(self, hub: ServerState, handler: Handler, context: ssl.SSLContext | None) -> None:
        """Begin, once the server knows of it: the handler may run before this returns."""

    def abort(self) -> None:
        """Close the socket at once and cancel the task."""


class StreamConnection:
    """A connection whose handler is a coroutine. `done` is called once: the task has ended and the socket is closed."""

    __slots__ = ("_done", "_open", "stream", "task")

    task: asyncio.Task[None] | None

    def __init__(
        self,
        sock: socket.socket,
        address: object,
        hub: ServerState,
        done: Callable[[StreamConnection], None],
    ) -> None:
        self._done = done
        self._open = 2
        self.stream = Stream(sock, address, hub)
        self.task = None

    def start(self, hub: ServerState, handler: Handler, context: ssl.SSLContext | None) -> None:
        # One bound method, and one context for all: a tenth of what an idle connection takes.
        self.stream.on_closed = ended = self._ended
        try:
            self.task = hub.start(_run(self.stream, hub, handler, context))
        except BaseException:
            # Somebody at the terminal wants the program to stop, in the handler's first step.
            self._ended()
            raise
        self.task.add_done_callback(ended, context=hub.context)

    def _ended(self, _task: object = None) -> None:
        self._open -= 1
        if not self._open:
            self._done(self)

    def abort(self) -> None:
        self.stream.abort()
        if self.task is not None:
            self.task.cancel()


async def _run(stream: Stream, hub: ServerState, handler: Handler, context: ssl.SSLContext | None) -> None:
    try:
        if context is not None and not await _secured(stream, hub, context):
            return
        stream.begin_deadlines()
        if handler.kind is Kind.ASYNCIO:
            await handler.call(stream, stream)
        else:
            await handler.call(stream)
    except asyncio.CancelledError:
        # The server's doing, which has aborted the stream already, or the handler's own.
        pass
    except GeneratorExit:
        raise
    except BaseException as exc:
        _report(exc, stream, hub)
        if isinstance(exc, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) not in _NO_INTERRUPT:
            # Somebody at the terminal wants the program to stop, and it only happened to be our turn.
            raise
    finally:
        stream.close()


async def _secured(stream: Stream, hub: ServerState, context: ssl.SSLContext) -> bool:
    try:
        await stream.start_tls(context)
    except ConnectionTimedOut as exc:
        reason = str(exc)
    except ssl.SSLError as exc:
        reason = (exc.reason or str(exc)).lower().replace("_", " ")
    except OSError as exc:
        reason = exc.strerror or str(exc)
    else:
        return True
    hub.emit(HandshakeFailed(_peer(stream.peer), escape_ascii(reason)))
    return False


def _report(exc: BaseException, stream: Stream, hub: ServerState) -> None:
    broken = stream.exception() is not None and isinstance(exc, OSError)
    if broken or isinstance(exc, _PEERS_FAULT):
        hub.emit(ConnectionLost(_peer(stream.peer), _describe(exc)))
    else:
        hub.emit(handler_failed(stream.peer, exc))


def handler_failed(peer: str, exc: BaseException) -> HandlerFailed:
    """The event for an exception that a handler let out, with its traceback made harmless line by line."""
    try:
        lines = "".join(traceback.format_exception(exc)).splitlines()
    except Exception:
        # The service's own class of exception has a say in it.
        lines = ["(its traceback cannot be told)"]
    if len(lines) > _TRACEBACK_LINES:
        lines[10 : len(lines) - _TRACEBACK_LINES + 10] = ["  ..."]
    return HandlerFailed(_peer(peer), _describe(exc), "\n".join(escape_ascii(line, 512) for line in lines))


def _describe(exc: BaseException) -> str:
    return escape_ascii(describe_error(exc))


def _peer(peer: str) -> str:
    return escape_ascii(peer)


# --- protocols --------------------------------------------------------------------------------------------------------


class ClosingHookSocket(socket.socket):
    """A socket that tells when it is closed: the one moment that every loop's transport has in common."""

    on_closed: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        self._tell()

    def detach(self) -> int:
        fd = super().detach()
        self._tell()
        return fd

    def _tell(self) -> None:
        if self.on_closed is not None:
            on_closed, self.on_closed = self.on_closed, None
            on_closed()


class _ConnectionMadeGuard(asyncio.Protocol):
    """Stands in for the service's protocol until `connection_made`, the one call of which a failure must end the
    connection: asyncio only logs it and goes on with a protocol that does not know its transport."""

    def __init__(self, protocol: Any, failed: Callable[[BaseException], None]) -> None:
        self.protocol = protocol
        self._failed = failed

    def connection_made(self, transport: Any) -> None:
        transport.set_protocol(self.protocol)
        try:
            self.protocol.connection_made(transport)
        except Exception as exc:
            self._failed(exc)
            transport.abort()


class ProtocolConnection:
    """A connection whose handler is an asyncio protocol, on the loop's own transports. `done` as above."""

    __slots__ = ("_address", "_done", "_hub", "_open", "_sock", "_transport", "task")
    # Of the deadlines only that of its age: what is read and written between transport and protocol nobody else sees.

    def __init__(
        self,
        sock: socket.socket,
        address: object,
        hub: ServerState,
        done: Callable[[ProtocolConnection], None],
    ) -> None:
        # Where the loop's transport has no room asyncio only logs it, and the peer waits for ever; libuv aborts.
        hub.poller.reserve(sock.fileno())
        self._address = format_address(address)
        self._hub = hub
        self._done = done
        self._open = 2
        # Not asyncio.Transport: uvloop's transports are no subclass of it.
        self._transport: Any = None
        self._sock = ClosingHookSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._sock.setblocking(False)
        self._sock.on_closed = self._ended
        self.task: asyncio.Task[None] | None = None

    def start(self, hub: ServerState, handler: Handler, context: ssl.SSLContext | None) -> None:
        if hub.limits.max_age is not None:
            hub.deadlines.set(self, "age", hub.limits.max_age)
        self.task = hub.context.copy().run(hub.loop.create_task, self._run(handler, context))
        self.task.add_done_callback(self._ended, context=hub.context)

    def _ended(self, _task: object = None) -> None:
        self._open -= 1
        if not self._open:
            self._hub.deadlines.clear(self, "age")
            self._done(self)

    def on_expired(self, phase: str) -> None:
        """It is too old."""
        self._hub.emit(ConnectionAborted(_peer(self._address), f"it was open for {self._hub.limits.max_age:g} s"))
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif self.task is not None:
            self.task.cancel()

    async def _run(self, handler: Handler, context: ssl.SSLContext | None) -> None:
        try:
            protocol = handler.call()
            if not hasattr(protocol, "connection_made"):
                raise TypeError(
                    f"the protocol factory returned {type(protocol).__name__}, which is no asyncio.Protocol"
                )
        except GeneratorExit:
            raise
        except BaseException as exc:
            self._sock.close()
            self._failed(exc)
            return
        limits = self._hub.limits
        timeouts: dict[str, float] = {}
        if context is not None:
            timeouts["ssl_handshake_timeout"] = limits.handshake_timeout
            timeouts["ssl_shutdown_timeout"] = limits.tls_shutdown_timeout
        self._hub.poller.refund(self._sock.fileno())
        try:
            self._transport, _ = await self._hub.loop.connect_accepted_socket(
                lambda: _ConnectionMadeGuard(protocol, self._failed), self._sock, ssl=context, **timeouts
            )
        except asyncio.CancelledError:
            self._sock.close()
        except OSError as exc:
            self._sock.close()
            self._hub.emit(HandshakeFailed(_peer(self._address), _describe(exc)))

    def _failed(self, exc: BaseException) -> None:
        self._hub.emit(handler_failed(self._address, exc))
