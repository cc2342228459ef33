"""One connection whose handler is a coroutine, from accept to close: TLS handshake, handler, every failure of both.

Whatever a handler does, it affects only its own connection: it may raise, exit, swallow its cancellation or return
early. The number of connections and their end are decided in base_server.py; protocol_connection.py is for protocols.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import traceback
from collections.abc import Callable
from typing import Protocol

from ..errors import ConnectionTimeoutError, LineTooLongError
from ..events import ConnectionLost, HandlerFailed, HandshakeFailed
from ..system.signals import noop_handler
from ..text import describe_error, escape_ascii
from .handlers import Handler, Kind
from .open_connection import OpenConnection
from .phases import ConnectionPhase
from .reader_writer import ReaderWriter
from .server_state import ServerState
from .stream import Stream, call_when_closed, forget_transport, keeps_open, start_timeouts, wait_closing

_TRACEBACK_LINES = 60
#: Handlers of SIGINT that raise no KeyboardInterrupt. With one of them, a KeyboardInterrupt is raised by the service.
_NO_INTERRUPT = (signal.SIG_IGN, noop_handler)
#: The kinds of handlers that asyncio's own server would serve, and its message for an exception of theirs.
_ASYNCIO_KINDS = (Kind.ASYNCIO, Kind.CALLBACK)
_UNHANDLED = "Unhandled exception in client_connected_cb"
#: What a closed connection is at whose handler still runs: its end.
_PHASE_NAMES = {
    ConnectionPhase.OPEN: "open",
    ConnectionPhase.CLOSING: "closing",
    ConnectionPhase.LINGERING: "lingering",
    ConnectionPhase.CLOSED: "closing",
}
#: Exceptions that a handler lets pass when its peer has left or broken the rules: no bug of the service.
_PEER_ERRORS = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, LineTooLongError)


class Connection(Protocol):
    """A connection as its server sees it."""

    task: asyncio.Task[None] | None

    def start(self, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        """Begin, after the server has counted the connection: the handler may run before this returns."""

    def close(self) -> None:
        """Send what was written, then close. The handler sees the end of its input."""

    def abort(self) -> None:
        """Close the socket at once and cancel the task."""

    def drain(self) -> None:
        """Tell the handler that the server is draining; called once, after `ServerState.draining` was set."""

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 once it is closed."""

    def describe(self, uses_tls: bool) -> OpenConnection:
        """Return what is known of it without a system call. `uses_tls`: its server speaks TLS from the first byte."""


class StreamConnection:
    """A connection with a coroutine as its handler.

    `done` is called once, when the task has ended and the socket is closed.
    """

    __slots__ = ("_done", "_open", "stream", "task")

    stream_class = Stream
    task: asyncio.Task[None] | None

    def __init__(
        self, sock: socket.socket, address: object, state: ServerState, done: Callable[[StreamConnection], None]
    ) -> None:
        self._done = done
        self._open = 2
        self.stream = self.stream_class(sock, address, state)
        self.task = None

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
        )

    def close(self) -> None:
        self.stream.close()

    def abort(self) -> None:
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


async def _run(stream: Stream, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
    try:
        if ssl_context is not None and not await _tls_handshake(stream, state, ssl_context):
            return
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
        _report(exc, stream, state)
        if handler.kind in _ASYNCIO_KINDS and isinstance(exc, Exception):
            _tell_loop(exc, stream, state)
        if isinstance(exc, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) not in _NO_INTERRUPT:
            # Ctrl-C is meant for the program; this handler only happened to be running.
            raise
    finally:
        stream.close()


async def _tls_handshake(stream: Stream, state: ServerState, ssl_context: ssl.SSLContext) -> bool:
    try:
        await stream.start_tls(ssl_context)
    except ConnectionTimeoutError as exc:
        reason = str(exc)
    except ssl.SSLError as exc:
        reason = (exc.reason or str(exc)).lower().replace("_", " ")
    except OSError as exc:
        reason = exc.strerror or str(exc)
    else:
        return True
    state.emit(HandshakeFailed(escape_ascii(stream.peer), escape_ascii(reason)))
    return False


def _report(exc: BaseException, stream: Stream, state: ServerState) -> None:
    broken = stream.exception() is not None and isinstance(exc, OSError)
    if broken or isinstance(exc, _PEER_ERRORS):
        state.emit(ConnectionLost(escape_ascii(stream.peer), _describe(exc)))
    else:
        state.emit(handler_failed(stream.peer, exc))


def _tell_loop(exc: Exception, stream: Stream, state: ServerState) -> None:
    """Call the loop's exception handler as asyncio does, if the service has set one: asyncio's own would only log the
    exception once more."""
    if state.loop.get_exception_handler() is not None:
        context = {"message": _UNHANDLED, "exception": exc, "transport": stream.transport}
        state.loop.call_exception_handler(context)


def handler_failed(peer: str, exc: BaseException) -> HandlerFailed:
    """Return the event for an exception that a handler has let pass, with each line of its traceback escaped."""
    try:
        lines = "".join(traceback.format_exception(exc)).splitlines()
    except Exception:
        # Formatting calls methods of the exception's class, which is the service's own.
        lines = ["(the traceback cannot be formatted)"]
    if len(lines) > _TRACEBACK_LINES:
        lines[10 : len(lines) - _TRACEBACK_LINES + 10] = ["  ..."]
    return HandlerFailed(escape_ascii(peer), _describe(exc), "\n".join(escape_ascii(line, 512) for line in lines))


def _describe(exc: BaseException) -> str:
    return escape_ascii(describe_error(exc))
