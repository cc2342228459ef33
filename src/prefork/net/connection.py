"""One connection whose handler is a coroutine, from accept to close: TLS handshake, handler, every failure of both.

Whatever a handler does, it affects only its own connection: it may raise, exit, swallow its cancellation or return
early. The number of connections and their end are decided in base_server.py; protocol_connection.py is for protocols.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

from ..core.account import CloseReason, Handshake
from ..core.ended_connection import EndedConnection
from ..core.proxy_protocol import ProxyHeader
from ..errors import ConnectionOverflowError, ConnectionTimeoutError
from ..events import ConnectionLost, HandlerFailed, HandshakeFailed, ReadLimitExceeded
from ..system.signals import noop_handler
from ..text import describe_error, escape_ascii, escaped_traceback
from . import subscribers
from .handlers import Handler, Kind
from .open_connection import OpenConnection
from .own_errors import exceeded_limit, is_own
from .phases import ConnectionPhase
from .reader_writer import ReaderWriter
from .server_state import ServerState
from .stream import (
    Stream,
    bytes_transferred,
    call_when_closed,
    forget_transport,
    keeps_open,
    proxy_address,
    start_timeouts,
    take_header,
    time_open,
    wait_closing,
)

#: Handlers of SIGINT that raise no KeyboardInterrupt. With one of them, a KeyboardInterrupt is raised by the service.
_NO_INTERRUPT = (signal.SIG_IGN, noop_handler)
#: The kinds of handlers that asyncio's own server would serve, and its message for an exception of theirs.
_ASYNCIO_KINDS = (Kind.ASYNCIO, Kind.CALLBACK)
_UNHANDLED = "Unhandled exception in client_connected_cb"
#: The errors of connections that the server has aborted, with what their end is counted as.
_ABORTS = (ConnectionTimeoutError, ConnectionOverflowError)
#: Used for each connection; an attribute of an enum class costs twice as much as a global.
_DONE = CloseReason.DONE
#: What a closed connection is at whose handler still runs: its end.
_PHASE_NAMES = {
    ConnectionPhase.OPEN: "open",
    ConnectionPhase.CLOSING: "closing",
    ConnectionPhase.LINGERING: "lingering",
    ConnectionPhase.CLOSED: "closing",
}


class Connection(Protocol):
    """A connection as its server sees it."""

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task of its handler; of a protocol the one that makes it. None before the start."""

    def start(self, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        """Begin, after the server has counted the connection: the handler may run before this returns."""

    def close(self) -> None:
        """Send what was written, then close. The handler sees the end of its input."""

    def abort(self, reason: CloseReason) -> None:
        """Close the socket at once and cancel the task. `reason` is counted, unless it has ended for another before."""

    def drain(self) -> None:
        """Tell the handler that the server is draining; called once, after `ServerState.draining` was set."""

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""

    def describe(self, uses_tls: bool) -> OpenConnection:
        """Return what is known of it without a system call. `uses_tls`: its server speaks TLS from the first byte."""

    def describe_end(self, local: object, seconds: float, reason: CloseReason) -> EndedConnection:
        """Return what it was, after its end, with what its server knows already."""

    def was_silent(self) -> bool:
        """Return whether no byte went either way, as with a health check that only connects."""

    def close_reason(self) -> CloseReason:
        """Return why it has ended."""

    def time_open(self) -> float:
        """Return the seconds since it was accepted."""


class StreamConnection:
    """A connection with a coroutine as its handler.

    `done` is called once, when the task has ended and the socket is closed.
    """

    __slots__ = ("_aborted_for", "_done", "_open", "stream", "task")

    stream_class = Stream
    task: asyncio.Task[CloseReason] | None

    def __init__(
        self,
        sock: socket.socket,
        address: object,
        state: ServerState,
        done: Callable[[StreamConnection], None],
        header: ProxyHeader | None = None,
    ) -> None:
        self._done = done
        self._open = 2
        self.stream = self.stream_class(sock, address, state)
        if header is not None:
            take_header(self.stream, header)
        self.task = None
        self._aborted_for: CloseReason | None = None

    def start(self, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        # One bound method, and one context for all connections, save 10 % of the memory of an idle connection.
        ended = self._ended
        call_when_closed(self.stream, ended)
        try:
            self.task = state.start_task(_run(self.stream, state, handler, ssl_context))
        except BaseException:
            # Ctrl-C in the handler's first step.
            self._ended()
            raise
        self.task.add_done_callback(ended, context=state.callback_context)

    def _ended(self, _task: object = None) -> None:
        self._open -= 1
        if not self._open:
            forget_transport(self.stream)
            self._done(self)

    def fileno(self) -> int:
        found: int = self.stream.get_extra_info("socket").fileno()
        return found

    def describe(self, uses_tls: bool) -> OpenConnection:
        stream = self.stream
        phase, engine = stream._phase, stream._engine
        name = _PHASE_NAMES[phase]
        if uses_tls and engine is None and phase is ConnectionPhase.OPEN:
            name = "handshake"
        return OpenConnection(
            stream.id,
            -1 if phase is ConnectionPhase.CLOSED else stream._fd,
            stream._address,
            name,
            stream._accepted_at,
            stream._buffered_bytes(),
            "" if engine is None else engine.info.version,
            proxy_address(stream),
        )

    def describe_end(self, local: object, seconds: float, reason: CloseReason) -> EndedConnection:
        stream, tls = self.stream, self.stream.tls
        version = "" if tls is None else tls.version
        received, sent = bytes_transferred(stream)
        if stream.proxy is not None:
            received += stream.proxy.length
        proxy = proxy_address(stream)
        return EndedConnection(stream.id, stream._address, local, seconds, received, sent, version, reason, proxy)

    def close(self) -> None:
        self.stream.close()

    def was_silent(self) -> bool:
        return not self.stream._received and not self.stream._sent

    def close_reason(self) -> CloseReason:
        if self._aborted_for is not None:
            return self._aborted_for
        error = self.stream.exception()
        if error is not None and isinstance(error, _ABORTS) and error.close_reason is not None:
            return CloseReason(error.close_reason)
        try:
            reason = _DONE if self.task is None else self.task.result()
        except BaseException:
            # It was cancelled, or the handler's KeyboardInterrupt is raised in the loop.
            reason = _DONE
        return reason if error is None or reason is not _DONE else CloseReason.PEER_RESET

    def time_open(self) -> float:
        return time_open(self.stream)

    def abort(self, reason: CloseReason) -> None:
        if self._aborted_for is None:
            self._aborted_for = reason
        self.stream.abort()
        if self.task is not None:
            self.task.cancel()

    def drain(self) -> None:
        # The handler was told by `stream.draining`.
        pass


class ReaderWriterConnection(StreamConnection):
    """A connection with an asyncio streams handler or callback."""

    __slots__ = ()

    stream_class = ReaderWriter


async def _run(stream: Stream, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> CloseReason:
    """Serve the connection. Return why it ended, as far as the handler decides it."""
    reason = _DONE
    try:
        if ssl_context is not None and not await _tls_handshake(stream, state, ssl_context):
            return CloseReason.HANDSHAKE_FAILED
        start_timeouts(stream)
        kind = handler.kind
        if kind is Kind.ASYNCIO:
            await handler.call(stream, stream)
        elif kind is Kind.CALLBACK:
            result = handler.call(stream, stream)
            if asyncio.iscoroutine(result):
                await result
            else:
                await wait_closing(stream)
        else:
            await handler.call(stream)
        if keeps_open(stream):
            await wait_closing(stream)
    except asyncio.CancelledError:
        # By the server, which has aborted the stream already, or by the handler itself.
        pass
    except GeneratorExit:
        raise
    except BaseException as exc:
        reason = _report(exc, stream, state)
        if handler.kind in _ASYNCIO_KINDS and isinstance(exc, Exception):
            _tell_loop(exc, stream, state)
        if isinstance(exc, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) not in _NO_INTERRUPT:
            # Ctrl-C is meant for the program; this handler only happened to be running.
            raise
    finally:
        stream.close()
    return reason


async def _tls_handshake(stream: Stream, state: ServerState, ssl_context: ssl.SSLContext) -> bool:
    began = state.loop.time()
    outcome = Handshake.FAILED
    try:
        await stream.start_tls(ssl_context)
    except ConnectionTimeoutError as exc:
        outcome = Handshake.TIMEOUT
        reason = str(exc)
    except ssl.SSLError as exc:
        reason = (exc.reason or str(exc)).lower().replace("_", " ")
    except OSError as exc:
        reason = exc.strerror or str(exc)
    else:
        tls = stream.tls
        assert tls is not None
        state.account.handshake(handshake_outcome(tls.version, tls.resumed), state.loop.time() - began)
        return True
    state.account.handshake(outcome, state.loop.time() - began)
    state.emit(HandshakeFailed(escape_ascii(stream.peer), escape_ascii(reason)))
    return False


def handshake_outcome(version: str, resumed: bool) -> Handshake:
    if version == "TLSv1.3":
        return Handshake.RESUMED_1_3 if resumed else Handshake.NEW_1_3
    return Handshake.RESUMED_1_2 if resumed else Handshake.NEW_1_2


def _report(exc: BaseException, stream: Stream, state: ServerState) -> CloseReason:
    """Report what a handler has let pass: an error of its connection is the peer's doing, any other its own failure.

    Return what the end of the connection is counted as.
    """
    if not is_own(exc, stream):
        state.account.handler_failed()
        state.emit(handler_failed(stream.peer, exc))
        if subscribers.callbacks:
            subscribers.tell_failed(stream.id, stream.peer, exc, state.emit)
        return CloseReason.HANDLER_FAILED
    if exceeded_limit(exc, stream):
        state.emit(ReadLimitExceeded(escape_ascii(stream.peer), state.limits.read_limit))
        return CloseReason.READ_LIMIT
    state.emit(ConnectionLost(escape_ascii(stream.peer), _describe(exc)))
    return CloseReason.DONE


def _tell_loop(exc: Exception, stream: Stream, state: ServerState) -> None:
    """Call the loop's exception handler as asyncio does, if the service has set one: asyncio's own would only log the
    exception once more."""
    if state.loop.get_exception_handler() is not None:
        context = {"message": _UNHANDLED, "exception": exc, "transport": stream.transport}
        state.loop.call_exception_handler(context)


def handler_failed(peer: str, exc: BaseException) -> HandlerFailed:
    """Return the event for an exception that a handler has let pass, with each line of its traceback escaped."""
    return HandlerFailed(escape_ascii(peer), _describe(exc), escaped_traceback(exc)).because_of(exc)


def _describe(exc: BaseException) -> str:
    return escape_ascii(describe_error(exc))
