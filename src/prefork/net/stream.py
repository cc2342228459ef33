"""`Stream`: one connection as its handler sees it, with the names and the meaning of asyncio's reader and writer.

What is awaited is here; the socket, its buffers and its end are in `channel.py`. Nothing here makes a system call.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from ..errors import LineTooLong, StreamBusy
from .channel import BULK, MAX_IO_PER_TICK, RECEIVE, Channel, Output, Phase, format_address
from .poller import READ
from .server_state import ServerState
from .timeouts import Timeouts
from .tls import TLSEngine, TLSInfo, prepare_context
from .transport import StreamTransport
from .waiter import Waiter

Bytes = bytes | bytearray | memoryview

# Looked up for each write; an attribute of an enum class costs twice what a global does.
_OPEN, _OUTPUT_OPEN = Phase.OPEN, Output.OPEN
#: A handler that wants so many bytes gets what the socket has, up to that; for less the buffer is filled.
_MUCH = 32 * 1024


class Stream(Channel):
    """Both halves of a connection. Made by the server, one for each connection, and closed by it when the handler ends.

    One task may read while others write. Cancelling a read loses no byte: what had arrived is there for the next one.
    Cancelling a `drain()` or `wait_closed()` changes nothing but that the task no longer waits.

    Writes are corked: they go out when the handler has to wait for input, at `drain()` or `send()`, when 64 KiB are
    waiting, when the handler returns, or at the end of the event loop's current round of events, whichever is first.
    """

    __slots__ = ("id",)

    id: int
    """Unique among the connections of this server, counted from 1."""

    def __init__(self, sock: Any, address: object, hub: ServerState) -> None:
        super().__init__(sock, address, hub)
        self.id = next(hub.ids)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, n: int = -1) -> bytes:
        """At least one byte and at most `n`, as soon as there are any; b"" at the end of input.

        `n` of -1 (the default) reads to the end of input, however much that is. Raises ConnectionError (or the OSError
        that broke the connection) once everything received before has been read; StreamBusy if another task waits.
        """
        buffer = self._buffer
        if self._backlog is not None:
            await self._unheld()
        if n > 0:
            engine = self._engine
            # Past the buffer, where nothing is in it: a tenth of the time of a small echo; and for who wants much all
            # of it at once (with TLS that is a fifteenth dearer).
            size = RECEIVE if n < _MUCH or engine is not None else n if n < BULK else BULK
            while not buffer.size:
                if self._ended:
                    return self._end()
                if self._readable and self._turns < MAX_IO_PER_TICK and (self._backlog is None or not self._held()):
                    data = self._receive(size)
                    if not data:
                        self._received(data)
                        continue
                    self._turns += 1
                    if engine is not None:
                        data = self._decrypt(engine, data)
                    if len(data) > n:
                        buffer.feed(data)
                    elif data:
                        return data
                else:
                    await self._input()
            return buffer.take(n)
        if n == 0:
            return b""
        while not self._ended:
            if not self._pull(BULK):
                await self._input()
        self._end()
        return buffer.take(buffer.size)

    async def readexactly(self, n: int) -> bytes:
        """`n` bytes. Raises IncompleteReadError, with what there was, if the input ends before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        buffer = self._buffer
        if self._backlog is not None:
            await self._unheld()
        while buffer.size < n:
            if not self._pull(n - buffer.size):
                if self._ended:
                    self._end()
                    raise asyncio.IncompleteReadError(buffer.take(buffer.size), n)
                await self._input()
        return buffer.take(n) if n else b""

    async def readuntil(self, separator: Bytes | tuple[Bytes, ...] = b"\n") -> bytes:
        """Everything up to the first `separator`, and the separator.

        Of several separators, given as a tuple, the one that ends first counts.
        Raises LimitOverrunError if the separator does not come within the limit (`Limits.read_limit`, 64 KiB), with
        everything left in the buffer; IncompleteReadError, with the rest, if the input ends before.
        """
        separator = _checked(separator)
        if self._backlog is not None:
            await self._unheld()
        while True:
            size = self._find(separator)
            if size:
                return self._buffer.take(size)
            if not self._pull():
                if self._ended:
                    self._end()
                    raise asyncio.IncompleteReadError(self._buffer.take(self._buffer.size), None)
                await self._input()

    async def readline(self) -> bytes:
        """A line with its b"\\n"; the last one may have none; b"" at the end of input.

        Raises LineTooLong (a ValueError) for a line longer than the limit; what was received of it is thrown away.
        """
        if self._backlog is not None:
            await self._unheld()
        buffer = self._buffer
        limit = self._hub.limits.read_limit
        while True:
            line = buffer.line(limit)
            if line:
                return line
            if buffer.size > limit:
                self._refuse_overlong_line()
            if not self._pull():
                if self._ended:
                    self._end()
                    return buffer.take(buffer.size)
                await self._input()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._backlog is None:
            line = self._buffer.line(self._hub.limits.read_limit)
            if line:
                return line
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def at_eof(self) -> bool:
        """Whether the end of input has been reached and everything before it has been read."""
        return self._ended and not self._buffer.size

    def exception(self) -> BaseException | None:
        """What broke the connection, if anything did."""
        return self._error

    def _find(self, separator: bytes | tuple[bytes, ...]) -> int:
        """How many bytes there are up to the end of the first separator; 0 if there is none yet."""
        buffer = self._buffer
        limit = self._hub.limits.read_limit
        if isinstance(separator, bytes):
            at = buffer.find(separator)
            end = at + len(separator)
        else:
            at, end = buffer.find_any(separator)
        if at < 0:
            longest = len(separator) if isinstance(separator, bytes) else max(map(len, separator))
            consumed = buffer.size + 1 - longest
            if consumed > limit:
                raise asyncio.LimitOverrunError("Separator is not found, and chunk exceed the limit", consumed)
            return 0
        if at > limit:
            raise asyncio.LimitOverrunError("Separator is found, but chunk is longer than limit", at)
        return end

    def _refuse_overlong_line(self) -> None:
        """Throw it away as far as it is here, as asyncio does, and raise."""
        try:
            self._find(b"\n")
        except asyncio.LimitOverrunError as exc:
            found = self._buffer.find(b"\n")
            self._buffer.take(found + 1 if found >= 0 else self._buffer.size)
            raise LineTooLong(exc.args[0]) from None

    async def _unheld(self) -> None:
        """Wait while too much is unsent, even for what has been received: a burst of requests with large answers would
        otherwise have its honest peer aborted."""
        while self._held() and self._phase is _OPEN:
            # Whoever sends what is unsent wakes it, and nobody else: the end of input would again and again.
            await self._waiter()

    def _waiter(self) -> Waiter:
        """What the reading task waits on; sends what is corked first."""
        if self._corked:
            self.flush()
        self._turns = 0
        reader = self._reader
        if reader is None or reader.spent:
            reader = self._reader = Waiter(self._hub.loop)
        elif reader.callback is not None:
            raise StreamBusy("another task is already waiting for input from this stream")
        return reader

    def _input(self) -> Waiter:
        """What to await until there may be input; sends what is corked first."""
        reader = self._waiter()
        if self._idle is not None and self._heard:
            self._heard = False
            self._waiting_since = self._hub.loop.time()
        if self._ended or (self._readable and not self._held()):
            # The flush found the connection broken, or this peer is so fast that others must get their turn.
            self._hub.loop.call_soon(reader.wake)
        elif not self._hub.poller.edge and not self._held():
            self._hub.poller.arm(self._fd, READ)
        return reader

    def _end(self) -> bytes:
        """The end of input was reached: b"", or what broke the connection."""
        if self._error is not None:
            raise self._failure()
        return b""

    def _failure(self) -> OSError:
        """A fresh copy of what broke the connection: raising one object again and again grows its traceback."""
        error = self._error
        if error is None:
            return ConnectionResetError("Connection lost")
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__
        if isinstance(error, TimeoutError):
            # Only once: a handler that goes on after a TimeoutError, as after one of its own `asyncio.timeout`, would
            # otherwise spin on a dead connection, and block the loop.
            self._error = ConnectionAbortedError(*error.args)
        return copy

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: Bytes) -> None:
        """Send `data`, in order, as soon as it makes sense. Never waits and never raises for a peer that is gone.

        Raises RuntimeError after `write_eof()`. A handler that leaves more than `Limits.abort_above` bytes unsent has
        its connection aborted: use `send()`, or `drain()` now and then.
        """
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
            data = bytes(data)
        if self._output is not _OUTPUT_OPEN or self._phase is not _OPEN:
            if self._output is Output.ENDED:
                raise RuntimeError("Cannot call write() after write_eof()")
            return
        if not data:
            return
        if self._corked:
            self._corked.append(data)
        else:
            if not self._stepped:
                self._hub.poller.cork(self)
            self._corked = [data]
        self._corked_size += len(data)
        if self._corked_size >= self._hub.limits.flush_at:
            self.flush()

    def writelines(self, chunks: Iterable[Bytes]) -> None:
        """`write` each of them."""
        for chunk in chunks:
            self.write(chunk)

    async def send(self, data: Bytes) -> None:
        """`write(data)` and `drain()`."""
        self.write(data)
        await self.drain()

    async def drain(self) -> None:
        """Send what was written; wait, if more than `Limits.drain_above` bytes stay unsent, until a quarter is left.

        Raises ConnectionResetError once the peer is gone or the stream is closed; ConnectionOverflow or
        ConnectionTimedOut where prefork aborted the connection itself.
        """
        if self._corked:
            self.flush()
        backlog = self._backlog
        if backlog is not None and backlog.size > self._drain_above:
            enough = self._drain_above // 4
            await self._wait_while(lambda: self._backlog is not None and self._backlog.size > enough)
        if self._output is Output.LOST or self._phase is not Phase.OPEN:
            # Let others run: a handler that ignores this error would hold the loop for ever.
            await asyncio.sleep(0)
            raise self._failure()
        self._turns += 1
        if self._turns >= MAX_IO_PER_TICK:
            self._turns = 0
            await asyncio.sleep(0)

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        """For writers: looked at again whenever something was sent, or the connection has come further to its end."""
        waiter = Waiter(self._hub.loop)
        self._writers += (waiter,)
        try:
            while condition():
                await waiter
        finally:
            self._writers = tuple(each for each in self._writers if each is not waiter)

    def can_write_eof(self) -> bool:
        """Whether this direction can be ended alone: not with TLS."""
        return self._engine is None

    def write_eof(self) -> None:
        """End our direction after what was written; the peer's stays open. Raises NotImplementedError with TLS."""
        if self._engine is not None:
            raise NotImplementedError("TLS cannot end one direction alone; close() the stream")
        if self._output is not Output.OPEN or self._phase is not Phase.OPEN:
            return
        self.flush()
        if self._is_lost():
            return
        self._output = Output.ENDED
        if self._backlog is None:
            self._shut_down_writing()

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the kernel has not taken."""
        return self._corked_size + (0 if self._backlog is None else self._backlog.size)

    @property
    def drain_above(self) -> int:
        """How many unsent bytes make `drain()` wait; None sets it back to `Limits.drain_above`."""
        return self._drain_above

    @drain_above.setter
    def drain_above(self, size: int | None) -> None:
        if size is not None and size < 0:
            raise ValueError(f"drain_above {size} is negative")
        self._drain_above = self._hub.limits.drain_above if size is None else size

    # --- the end ------------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the stream is closed, is being closed, or has lost its peer."""
        return self._phase is not Phase.OPEN or self._output is Output.LOST

    async def wait_closed(self) -> None:
        """After `close()`: wait until everything written is in the kernel's hands, or lost. Never raises for a peer."""
        await self._wait_while(lambda: self._phase in (Phase.OPEN, Phase.CLOSING))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            await self.wait_closed()

    @property
    def draining(self) -> bool:
        """Whether the worker wants to stop: finish what you are at, say goodbye, return."""
        return self._hub.draining.is_set()

    async def wait_draining(self) -> None:
        """Returns when `draining` is true."""
        await self._hub.draining.wait()

    # --- TLS ----------------------------------------------------------------------------------------------------------

    async def start_tls(self, context: ssl.SSLContext, *, ssl_handshake_timeout: float | None = None) -> None:
        """Go over to TLS, as the server's side, from the next byte on.

        What was written before is sent in the clear. Raises ConnectionAbortedError, and aborts, if the peer has sent
        plaintext ahead of the handshake: whoever can inject commands before TLS begins would have them obeyed as if
        they were protected (CVE-2011-0411). Raises ssl.SSLError if the handshake fails, ConnectionTimedOut if it takes
        longer than `Limits.handshake_timeout`. When it has raised, the connection is of no use any more.
        """
        if self._engine is not None:
            raise RuntimeError("this stream speaks TLS already")
        if self._reader is not None and self._reader.waiting:
            raise StreamBusy("another task is already waiting for input from this stream")
        if self._buffer.size:
            self.abort()
            raise ConnectionAbortedError("the peer sent plaintext ahead of the TLS handshake")
        self.flush()
        if self._phase is not Phase.OPEN or self._is_lost():
            raise self._failure()
        prepare_context(context)
        engine = TLSEngine(context)
        limit = self._hub.limits.handshake_timeout if ssl_handshake_timeout is None else ssl_handshake_timeout
        self._set_deadline("handshake", limit)
        try:
            await self._shake_hands(engine)
        finally:
            self._hub.deadlines.clear(self, "handshake")
        self._engine = engine
        if plain := self._decrypt(engine, b""):
            self._buffer.feed(plain)

    async def _shake_hands(self, engine: TLSEngine) -> None:
        while True:
            # The peer has the first word.
            received = await self._receive_some()
            await self._hub.handshakes.acquire_turn()
            if self._is_closed():
                raise self._failure()
            try:
                done = engine.handshake(received)
            except ssl.SSLError:
                # The alert that says what was wrong.
                self._transmit(engine.outgoing())
                raise
            if done:
                return
            self._transmit(engine.outgoing())

    async def _receive_some(self) -> bytes:
        """Bytes as they came over the wire. Raises ConnectionError where there are no more."""
        while True:
            if self._readable and not self._ended and self._turns < MAX_IO_PER_TICK:
                self._turns += 1
                data = self._receive()
                if data:
                    return data
                if data is not None:
                    self._end_input()
            if self._ended:
                raise self._failure() if self._error is not None else ConnectionResetError("the peer left")
            await self._input()

    @property
    def tls(self) -> TLSInfo | None:
        """What is known of the connection's TLS; None in the clear."""
        return None if self._engine is None else self._engine.info

    # --- who is there -------------------------------------------------------------------------------------------------

    @property
    def peer(self) -> str:
        """The other end: `203.0.113.7:51234`, `[2001:db8::7]:51234`, `unix`."""
        return format_address(self._address)

    @property
    def local(self) -> str:
        """This end, as the peer addressed it."""
        return format_address(self.get_extra_info("sockname"))

    @property
    def proxy(self) -> None:
        """What a proxy in front said of the connection; None, as none is spoken."""
        return None

    @property
    def timeouts(self) -> Timeouts:
        """The deadlines of this connection, to be set otherwise than the server does."""
        return Timeouts(self)

    @property
    def transport(self) -> StreamTransport:
        """The asyncio transport of this stream, for handlers that want one."""
        return StreamTransport(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio's: peername, sockname, socket; with TLS ssl_object, sslcontext, peercert, cipher, compression."""
        if name == "peername":
            return self._address
        if name == "socket":
            self._shown = True
            return self._sock
        if name == "sockname":
            try:
                return self._sock.getsockname()
            except OSError:
                return default
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


def _checked(separator: Bytes | tuple[Bytes, ...]) -> bytes | tuple[bytes, ...]:
    if not separator or (isinstance(separator, tuple) and not all(separator)):
        raise ValueError("Separator should contain at least one element")
    if isinstance(separator, tuple):
        return tuple(bytes(each) for each in separator)
    return bytes(separator)
