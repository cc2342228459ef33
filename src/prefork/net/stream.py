"""`Stream`: one connection as its handler sees it, with the names and the meaning of asyncio's reader and writer.

The top layer of 5, see `channel.py`: how a connection closes, how it changes to TLS, and the facts about it. No byte
is buffered here.
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from ..core.account import CloseReason
from ..core.proxy_protocol import ProxyHeader
from ..errors import ConnectionTimeoutError, StreamBusyError
from ..text import format_address
from .deadlines import Deadline
from .own_errors import Raised, mark
from .phases import ConnectionPhase, Input, Output
from .policy import Policy
from .receiving import BUSY
from .server_state import ServerState
from .timeouts import Timeouts
from .tls import TLSEngine, TLSInfo, prepare_context
from .transport import StreamTransport

# Looked up for each connection; an attribute of an enum class costs twice as much as a global.
_CLOSING = ConnectionPhase.CLOSING
_OUTPUT_OPEN, _BROKEN = Output.OPEN, Output.BROKEN
_FIN = Input.FIN


class Stream(Policy):
    """Both halves of a connection. The server makes one for each connection and closes it when the handler returns.

    One task may read while others write. Writes are corked: they are sent when the handler waits for input, at
    `drain()` or `send()`, when 64 KiB are corked, when the handler returns, or at the end of the event loop's current
    round of events, whichever is first.
    """

    __slots__ = ("_proxied", "id")

    id: int
    """Unique among the connections of this server, counted from 1."""
    _proxied: _Proxied
    """What the connection has from its proxy. Empty without one, so that it costs nothing."""

    def __init__(self, sock: socket.socket, address: object, shared: ServerState) -> None:
        Policy.__init__(self, sock, address, shared)
        self.id = next(shared.ids)
        if shared.limits.max_age is not None:
            self._timeout_state().set_age_timeout(shared.limits.max_age)

    def _raised(self, error: Raised) -> Raised:
        return mark(error, self)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        self._enter(_CLOSING)
        self._stop_reading()
        if self._output is _BROKEN:
            self._dispose()
        elif not self._backlog_size:
            self._linger()
        else:
            # Input that was there before brings no new edge.
            self._shared.loop.call_soon(self._discard_input)

    def is_closing(self) -> bool:
        """Return whether the stream is closed, is being closed, or has lost its peer."""
        return self._phase is not ConnectionPhase.OPEN or self._output is Output.BROKEN

    async def wait_closed(self) -> None:
        """Wait, after `close()`, until everything written was taken by the kernel, or lost. Never raises for a peer."""
        await self._wait_while(lambda: self._phase in (ConnectionPhase.OPEN, ConnectionPhase.CLOSING))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            await self.wait_closed()

    @property
    def draining(self) -> bool:
        """Whether the worker is stopping: finish the current work, say goodbye, return."""
        return self._shared.draining.is_set()

    async def wait_draining(self) -> None:
        """Wait until `draining` is true."""
        await self._shared.draining.wait()

    # Lingering close. A socket that is closed with input unread, or that receives more of it later, answers with a
    # reset. The reset destroys what the peer has not read yet (RFC 1122, 4.2.2.13; RFC 7230, 6.6). So our end is sent
    # first, and the socket stays open, discarding input, until the peer's end has come or `linger_timeout` has passed.
    # With TLS the peer owes a close_notify, which comes soon: `tls_shutdown_timeout`, and `linger_timeout` once more if
    # the kernel still has unacknowledged bytes then.

    def _linger(self) -> None:
        """Send our end, for everything else is sent, and wait for the peer's."""
        engine = self._engine
        if engine is not None and not engine.sent_close_notify:
            self._send_raw(engine.close_notify())
            if self._backlog_size:
                # Called again when it is sent.
                return
        # close(2) sends the FIN itself if the peer has sent its own and no other process holds the socket. Without
        # shutdown(2) then, a short connection costs 5 % less.
        received_fin = self._input is _FIN
        if self._output is _OUTPUT_OPEN and (not received_fin or self._socket_exposed or self._shared.forked):
            self._shut_down_writing()
        if self._is_broken() or received_fin:
            self._dispose()
            return
        self._enter(ConnectionPhase.LINGERING)
        seconds = self._shared.limits.linger_timeout if engine is None else engine.shutdown_timeout
        self._shared.deadlines.set(self, Deadline.LINGER, seconds)
        self._wake_writers_soon()
        # Input that was there before brings no new edge.
        self._shared.loop.call_soon(self._discard_input)

    def _on_output_sent(self) -> None:
        if self._phase is ConnectionPhase.CLOSING:
            self._linger()
        elif self._output is Output.ENDED:
            self._shut_down_writing()

    def _on_deadline(self, deadline: Deadline) -> None:
        if self._phase is ConnectionPhase.CLOSED:
            # By another deadline that passed at the same moment.
            return
        if deadline is Deadline.WRITE:
            self._on_write_timeout()
        elif deadline is Deadline.SEND_RETRY:
            self._on_writable()
        elif deadline is Deadline.HANDSHAKE:
            # Logged by the server as a failed handshake.
            self._abort_with(
                ConnectionTimeoutError("handshake not finished in time (--handshake-timeout)"),
                CloseReason.HANDSHAKE_TIMEOUT,
                logged=False,
            )
        elif deadline is Deadline.LINGER and self._engine is not None and self._unacknowledged():
            # The peer still reads what it was sent: closing now, with its input unread, would destroy the remainder.
            self._shared.deadlines.set(self, Deadline.DELIVERY, self._shared.limits.linger_timeout)
        elif deadline is Deadline.LINGER or deadline is Deadline.DELIVERY:
            self._dispose()
        else:
            raise AssertionError(f"{deadline!r} is no deadline of this class")

    def _unacknowledged(self) -> bool:
        """Return whether the kernel has bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, b"\0\0\0\0"))
        except OSError:
            return False
        return bool(count)

    # --- TLS ----------------------------------------------------------------------------------------------------------

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Change to TLS from the next byte on, as the server's side; with `server_hostname` as the client's.

        The timeouts default to `Limits.handshake_timeout` and `Limits.tls_shutdown_timeout`. What was written before is
        sent in the clear. Raises ssl.SSLError if the handshake fails, ConnectionTimeoutError if it takes too long.
        Raises ConnectionAbortedError, and aborts, if the peer has sent plaintext ahead of the handshake: an attacker
        could inject commands that would be obeyed as if TLS protected them (CVE-2011-0411). After an error the
        connection is of no use. Raises ValueError for a timeout that is not positive, with nothing changed.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}")
        _check_positive("ssl_handshake_timeout", ssl_handshake_timeout)
        _check_positive("ssl_shutdown_timeout", ssl_shutdown_timeout)
        if self._engine is not None:
            raise RuntimeError("this stream speaks TLS already")
        if self._is_reading():
            raise StreamBusyError(BUSY)
        if self._buffered:
            self.abort()
            raise self._raised(ConnectionAbortedError("the peer sent plaintext ahead of the TLS handshake"))
        self._flush()
        if self._phase is not ConnectionPhase.OPEN or self._is_broken():
            raise self._failure()
        limits = self._shared.limits
        if server_hostname is None:
            prepare_context(sslcontext)
        shutdown_timeout = limits.tls_shutdown_timeout if ssl_shutdown_timeout is None else ssl_shutdown_timeout
        engine = TLSEngine(sslcontext, shutdown_timeout, server_hostname)
        handshake_timeout = limits.handshake_timeout if ssl_handshake_timeout is None else ssl_handshake_timeout
        self._shared.deadlines.set(self, Deadline.HANDSHAKE, handshake_timeout)
        try:
            await self._do_handshake(engine)
        except OSError as exc:
            self._raised(exc)
            raise
        finally:
            self._shared.deadlines.clear(self, Deadline.HANDSHAKE)
        self._engine = engine
        self._decrypt_pending()

    async def _do_handshake(self, engine: TLSEngine) -> None:
        # The client has the first word.
        received = b"" if engine.is_client else await self._receive_raw()
        while True:
            await self._shared.handshakes.acquire_turn()
            if self._is_closed():
                raise self._failure()
            try:
                done = engine.handshake(received)
            except ssl.SSLError:
                # The alert tells the peer what was wrong.
                self._send_raw(engine.pending_output())
                raise
            if done:
                return
            self._send_raw(engine.pending_output())
            received = await self._receive_raw()

    @property
    def tls(self) -> TLSInfo | None:
        """The facts of the connection's TLS; None in the clear."""
        return None if self._engine is None else self._engine.info

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The peer's address: `203.0.113.7:51234`, `[2001:db8::7]:51234`, `unix`. Behind a proxy that of its client."""
        return format_address(self._address)

    @property
    def proxy(self) -> ProxyHeader | None:
        """The PROXY header that the connection began with (`--proxy-protocol`); None without one."""
        proxied: _Proxied | None = getattr(self, "_proxied", None)
        return None if proxied is None else proxied.header

    @property
    def local(self) -> str:
        """The local address, as the peer addressed it."""
        return format_address(self.get_extra_info("sockname"))

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts of this connection, which its handler may set."""
        return Timeouts(self._timeout_state())

    @property
    def transport(self) -> StreamTransport:
        """The asyncio transport of this stream, for handlers that want one: the same each time."""
        transport = self._transport
        if transport is None:
            transport = self._transport = StreamTransport(self, self._shared.loop)
        return transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what asyncio's method does: peername, sockname, socket; with TLS ssl_object, sslcontext, peercert,
        cipher, compression. Behind a proxy peername is its client; proxy is its header, and proxy_peer its address."""
        if name == "peername":
            return self._address
        if name == "socket":
            self._socket_exposed = True
            return self._sock
        if name == "sockname":
            try:
                return self._sock.getsockname()
            except OSError:
                return default
        if name in ("proxy", "proxy_peer"):
            proxied: _Proxied | None = getattr(self, "_proxied", None)
            return default if proxied is None else proxied.header if name == "proxy" else proxied.address
        return self._tls_info(name, default)

    def _tls_info(self, name: str, default: Any) -> Any:
        if self._engine is None:
            return default
        connection = self._engine.info.ssl_object
        match name:
            case "ssl_object":
                return connection
            case "sslcontext":
                return connection.context
            case "peercert":
                return connection.getpeercert()
            case "cipher":
                return connection.cipher()
            case "compression":
                return connection.compression()
        return default

    def __repr__(self) -> str:
        tls = " TLS" if self._engine is not None else ""
        return f"<Stream {self.id} {self.peer} {self._phase.name.lower()}{tls}>"


def _check_positive(name: str, seconds: float | None) -> None:
    if seconds is not None and seconds <= 0:
        raise ValueError(f"{name} should be a positive number, got {seconds}")


# --- for the server, and not for handlers -----------------------------------------------------------------------------


class _Proxied(NamedTuple):
    """What a connection has from its proxy."""

    header: ProxyHeader
    address: object
    """Of the proxy, as accept(2) gave it."""


def take_header(stream: Stream, header: ProxyHeader) -> None:
    """Have `stream` be one of the client that `header` tells of. Called before its handler starts."""
    stream._proxied = _Proxied(header, stream._address)
    if header.source is not None:
        stream._address = header.source
    # The stream counts what follows the header.
    stream._shared.account.transferred(header.length, 0)


def proxy_address(stream: Stream) -> object:
    """Return the address of the proxy that told the peer's; None without one."""
    proxied: _Proxied | None = getattr(stream, "_proxied", None)
    return None if proxied is None else proxied.address


def call_when_closed(stream: Stream, callback: Callable[[], None]) -> None:
    """Call `callback` once when the socket of `stream` has been closed, whatever closed it."""
    stream._on_closed = callback


def keeps_open(stream: Stream) -> bool:
    """Return whether the handler has given the connection to a protocol, which now decides when it closes."""
    return stream._transport is not None and stream._transport.is_replaced()


async def wait_closing(stream: Stream) -> None:
    """Wait until `close()` or `abort()` was called, or the connection is lost."""
    await stream._wait_while(lambda: not stream.is_closing())


def forget_transport(stream: Stream) -> None:
    """Let go of the transport, because the two would keep each other alive until the next garbage collection."""
    stream._transport = None


def time_open(stream: Stream) -> float:
    """Return the seconds since the connection was accepted."""
    return stream._shared.loop.time() - stream._accepted_at


def bytes_transferred(stream: Stream) -> tuple[int, int]:
    """Return the bytes received and sent, as they came over the wire."""
    return stream._received, stream._sent


def start_timeouts(stream: Stream) -> None:
    """Start the first-byte and idle timeouts of `stream`, because its handler runs from now on."""
    limits = stream._shared.limits
    if limits.first_byte_timeout is not None or limits.idle_timeout is not None:
        stream._timeout_state().start(data_arrived=stream._buffered > 0)
