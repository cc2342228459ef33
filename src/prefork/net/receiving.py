"""The input of a connection in pure Python: receiving into a buffer, and the reads and waits of the task that reads.

Layer 3 of the core: see `channel.py`. How the connection closes is decided above; only the peer's FIN, the last that a
lingering one waits for, closes it here.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import NoReturn, Self

from ..core.buffer import ReadBuffer
from ..core.separators import FOUND_LATE, NOT_FOUND, checked_separator, find_separator
from ..errors import LineTooLongError, StreamBusyError
from ..implementation import native
from .channel import DONTWAIT, MAX_IO_BEFORE_YIELD, NOT_IDLE
from .phases import ConnectionPhase, Input
from .poller import ERROR, HANGUP_OR_ERROR, READ, WRITE
from .sending import Bytes, Sending
from .server_state import ServerState
from .tls import TLSEngine
from .waiter import Waiter

#: Bytes of one receive into the buffer: a message of 64 KiB, and what four records of TLS add to it.
RECEIVE_SIZE = 65 * 1024
#: Bytes of one receive that goes straight to a handler that asked for as many.
MAX_RECEIVE_SIZE = 256 * 1024
#: A read of this size is a large one: it receives that much, and not RECEIVE_SIZE into the buffer.
_LARGE_READ = 32 * 1024
#: The message of asyncio's streams.
BUSY = "read() called while another coroutine is already waiting for incoming data"
_READ_EVENTS = READ | HANGUP_OR_ERROR


# Looked up for each event; an attribute of an enum class costs twice as much as a global.
_OPEN = ConnectionPhase.OPEN
_READABLE, _EMPTY, _ENDED, _FIN, _PAUSED = Input.READABLE, Input.EMPTY, Input.ENDED, Input.FIN, Input.PAUSED


class Receiving(Sending):
    """The layer of a stream that receives and buffers input."""

    __slots__ = ("_buffer", "_input", "_reader", "_short_read_empties")

    def __init__(self, sock: socket.socket, address: object, shared: ServerState) -> None:
        Sending.__init__(self, sock, address, shared)
        self._buffer = ReadBuffer()
        self._input = _READABLE
        self._reader: Waiter | None = None
        self._short_read_empties = type(address) is tuple
        """A receive of less than it asked for has emptied a TCP socket (epoll(7)). A unix socket may stop earlier, and
        after a hang-up no further edge reports the FIN behind the data."""
        # The last statement that can fail: the kernel may have no room for one more registration.
        shared.poller.add(self._fd, self)

    # --- what a handler calls -----------------------------------------------------------------------------------------

    async def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes, as soon as there is at least one; b"" at the end of input.

        `n` of -1 (the default) reads to the end of input, without a limit. Raises ConnectionError (or the OSError that
        broke the connection) once everything received before has been read; StreamBusyError if another task waits.
        Cancelling a read loses no byte: the next one returns what had arrived.
        """
        buffer = self._buffer
        # Here and below, because nothing is unsent nearly always and the test costs less than the call that repeats it.
        if self._backlog is not None:
            await self._wait_reads_resumed()
        if n > 0:
            engine = self._engine
            # With an empty buffer, received bytes are returned directly (saves 10 % of a 1 KiB echo). Large reads are
            # one large receive, except over TLS, where that is 7 % slower.
            size = RECEIVE_SIZE
            if n >= _LARGE_READ and engine is None:
                size = n if n < MAX_RECEIVE_SIZE else MAX_RECEIVE_SIZE
            while not buffer.size:
                state = self._input
                if state is _READABLE:
                    if self._io_left and (self._backlog is None or not self._reads_paused()):
                        data = self._receive(size)
                        if not data:
                            self._process(data)
                            continue
                        self._io_left -= 1
                        if engine is not None:
                            data = self._decrypt(engine, data)
                        if len(data) > n:
                            buffer.feed(data)
                        elif data:
                            return data
                        continue
                elif state is not _EMPTY and state is not _PAUSED:
                    return self._end_of_input_result()
                await self._wait_input()
            return buffer.take(n)
        if n == 0:
            return b""
        while not self._has_ended():
            if not self._fill(MAX_RECEIVE_SIZE):
                await self._wait_input()
        self._end_of_input_result()
        return buffer.take(buffer.size)

    async def readexactly(self, n: int) -> bytes:
        """Return `n` bytes. Raises IncompleteReadError, with what there was, if the input ends before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        buffer = self._buffer
        if self._backlog is not None:
            await self._wait_reads_resumed()
        while buffer.size < n:
            if not self._fill(n - buffer.size):
                if self._has_ended():
                    self._end_of_input_result()
                    raise self._raised(asyncio.IncompleteReadError(buffer.take(buffer.size), n))
                await self._wait_input()
        return buffer.take(n) if n else b""

    async def readuntil(self, separator: Bytes | tuple[Bytes, ...] = b"\n") -> bytes:
        """Return everything up to and including the first `separator`; of several, in a tuple, the one that ends first.

        Raises LimitOverrunError if the separator does not come within `Limits.read_limit` (64 KiB), and leaves the
        bytes in the buffer; IncompleteReadError, with the remainder, if the input ends before.
        """
        buffer = self._buffer
        separator = checked_separator(separator)
        if self._backlog is not None:
            await self._wait_reads_resumed()
        limit = self._shared.limits.read_limit
        received = False
        while True:
            at, end = find_separator(buffer, separator)
            if at > limit:
                raise self._raised(asyncio.LimitOverrunError(FOUND_LATE, at))
            if at >= 0:
                return buffer.take(end)
            # What has arrived since an earlier LimitOverrunError is looked at, up to a bound.
            overrun = end > limit
            if overrun and not received and buffer.size <= 2 * limit:
                self._expect_input()
            elif overrun:
                raise self._raised(asyncio.LimitOverrunError(NOT_FOUND, end))
            received = True
            if not self._fill():
                if overrun:
                    raise self._raised(asyncio.LimitOverrunError(NOT_FOUND, end))
                if self._has_ended():
                    self._end_of_input_result()
                    raise self._raised(asyncio.IncompleteReadError(buffer.take(buffer.size), None))
                await self._wait_input()

    async def readline(self) -> bytes:
        """Return a line with its b"\\n"; the last one may have none. Return b"" at the end of input.

        Raises LineTooLongError (a ValueError) for a line longer than the limit, and discards what was received of it.
        """
        if self._backlog is not None:
            await self._wait_reads_resumed()
        buffer = self._buffer
        limit = self._shared.limits.read_limit
        while True:
            line = buffer.line(limit)
            if line:
                return line
            if buffer.size > limit:
                self._reject_long_line()
            if not self._fill():
                if self._has_ended():
                    self._end_of_input_result()
                    return buffer.take(buffer.size)
                await self._wait_input()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._backlog is None:
            line = self._buffer.line(self._shared.limits.read_limit)
            if line:
                return line
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    @property
    def _buffered(self) -> int:
        return self._buffer.size

    def at_eof(self) -> bool:
        """Return whether the input has ended and everything before has been read.

        Receives what has arrived, so that an end is known as soon as it is there. False if a read would raise.
        """
        if not self._buffer.size and not self._has_ended():
            self._expect_input()
            self._fill()
        return self._has_ended() and not self._buffer.size and self._error is None

    def close(self) -> None:
        """Send what was written, tell the peer the end, wait for its end for a short time, and close the socket.

        Returns at once and can be called again. A task that waits for input gets the end of it.
        """
        if self._phase is _OPEN:
            self._flush()
            if self._phase is _OPEN:
                self._close()

    # --- hooks: what the layers above do ------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close in the regular way: what was written is sent, or waits to be."""
        raise NotImplementedError

    def _cork_tls_output(self) -> None:
        """Send what TLS itself has to say with the next answer, or at the end of the round."""
        raise NotImplementedError

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def _wait_reads_resumed(self) -> None:
        """Wait while too much is unsent, even for what has been received: otherwise a burst of requests with large
        answers would have its honest peer aborted."""
        while self._reads_paused() and self._phase is _OPEN:
            # Not `_wait_input`, which would return again and again once the input has ended.
            await self._begin_wait()

    def _begin_wait(self) -> Waiter:
        """Flush, count I/O anew, and return the waiter of the reading task. Raises StreamBusyError if another waits."""
        if self._corked:
            self._flush()
        self._io_left = MAX_IO_BEFORE_YIELD
        reader = self._reader
        if reader is None or reader.cancel_pending:
            reader = self._reader = Waiter(self._shared.loop)
        elif reader.callback is not None:
            raise StreamBusyError(BUSY)
        return reader

    def _wait_input(self) -> Waiter:
        """Return what to await until there may be input."""
        reader = self._begin_wait()
        if self._timeouts is not None and self._idle_since < 0:
            self._idle_since = self._shared.loop.time()
        if self._input is _EMPTY:
            if not self._shared.poller.edge and not self._reads_paused():
                self._shared.poller.arm(self._fd, READ)
        elif self._input is not _PAUSED and (self._input is not _READABLE or not self._reads_paused()):
            # The flush found the connection broken, or this peer is so fast that others must run first.
            self._shared.loop.call_soon(reader.wake)
        return reader

    def _is_reading(self) -> bool:
        return self._reader is not None and self._reader.waiting

    def _awaits_input(self) -> bool:
        return self._is_reading() and self._input is not _PAUSED and not self._reads_paused()

    def _pause_input(self) -> None:
        """Receive nothing until `_resume_input`: reads return what is buffered, and then wait."""
        if self._input is _READABLE or self._input is _EMPTY:
            self._input = _PAUSED

    def _resume_input(self) -> None:
        if self._input is _PAUSED:
            # Events were ignored meanwhile.
            self._input = _READABLE
            if self._reader is not None:
                self._reader.wake_soon()

    # --- receiving ----------------------------------------------------------------------------------------------------

    def _on_ready(self, mask: int) -> None:
        """Handle an event. Sending goes first, because it may end a pause of reading."""
        if mask & HANGUP_OR_ERROR:
            self._short_read_empties = False
            if mask & ERROR and (error := self._pending_error()) is not None:
                self._break_output(error)
        if mask & WRITE and self._backlog is not None:
            self._on_writable()
        if mask & _READ_EVENTS:
            if self._phase is not _OPEN:
                self._discard_input()
                return
            if self._input is _EMPTY:
                self._input = _READABLE
            reader = self._reader
            if reader is not None and (self._backlog is None or not self._reads_paused()):
                self._in_callback = True
                try:
                    reader.wake()
                finally:
                    self._in_callback = False
                    if self._corked:
                        self._flush()

    def _receive(self, size: int = RECEIVE_SIZE) -> bytes | None:
        """Receive once: b"" is the end of input, None is no data now."""
        try:
            data = self._sock.recv(size, DONTWAIT)
        except (BlockingIOError, InterruptedError):
            self._input = _EMPTY
            return None
        except OSError as exc:
            self._fail(exc)
            return b""
        if self._timeouts is not None:
            self._idle_since = NOT_IDLE
        count = len(data)
        self._received += count
        self._shared.account.traffic[0] += count
        if not data:
            self._input = _FIN
        elif count < size and self._short_read_empties:
            self._input = _EMPTY
        return data

    def _expect_input(self) -> None:
        """Let a receive be tried although no event has said that there is input: without epoll there are events only
        for a task that waits."""
        if self._input is _EMPTY and not self._shared.poller.edge and not self._is_reading():
            self._input = _READABLE

    def _fill(self, wanted: int = 0) -> bool:
        """Receive once into the buffer, more than usual if more is `wanted`. Return whether to look at the buffer again
        before waiting."""
        if self._input is not _READABLE or not self._io_left or self._reads_paused():
            return False
        self._process(self._receive(RECEIVE_SIZE if wanted <= RECEIVE_SIZE else min(wanted, MAX_RECEIVE_SIZE)))
        return self._buffer.size > 0 or self._input is _READABLE

    def _process(self, data: bytes | None) -> None:
        if data is None:
            return
        self._io_left -= 1
        if not data:
            self._end_input()
        elif self._engine is None:
            self._buffer.feed(data)
        elif plain := self._decrypt(self._engine, data):
            self._buffer.feed(plain)

    def _decrypt(self, engine: TLSEngine, data: bytes) -> bytes:
        """Return the plain bytes of `data`; b"" if there are none yet, if a record is broken, or at the end."""
        try:
            plain = engine.decrypt(data)
        except ssl.SSLError as exc:
            self._send_raw(engine.pending_output())
            self._fail(ConnectionAbortedError(f"TLS: {exc.reason or exc}"))
            return b""
        if engine.outgoing.pending:
            self._cork_tls_output()
        if engine.received_close_notify:
            self._end_input()
        return plain

    def _decrypt_pending(self) -> None:
        """Decrypt what came with the end of the handshake."""
        if self._engine is not None and (plain := self._decrypt(self._engine, b"")):
            self._buffer.feed(plain)

    def _end_input(self) -> None:
        if self._input is not _FIN:
            self._input = _ENDED
        if self._engine is not None:
            self._engine.note_end()

    def _has_ended(self) -> bool:
        return self._input is _ENDED or self._input is _FIN

    def _end_of_input_result(self) -> bytes:
        """Return b"", or raise the error that broke the connection."""
        if self._error is not None:
            raise self._failure()
        return b""

    def _discard_input(self) -> None:
        """Receive and discard while closing, otherwise unread bytes would make the kernel answer the close with a
        reset."""
        for _ in range(MAX_IO_BEFORE_YIELD):
            if self._input is _FIN:
                return
            try:
                data = self._sock.recv(RECEIVE_SIZE, DONTWAIT)
            except (BlockingIOError, InterruptedError):
                if not self._shared.poller.edge:
                    self._shared.poller.arm(self._fd, READ)
                return
            except OSError as exc:
                self._fail(exc)
                return
            if not data:
                self._input = _FIN
                if self._phase is ConnectionPhase.LINGERING:
                    self._dispose()
                return
        self._shared.loop.call_soon(self._discard_input)

    async def _receive_raw(self) -> bytes:
        """Return bytes as they came over the wire. Raises ConnectionError at the end of input."""
        while True:
            if self._input is _READABLE and self._io_left:
                self._io_left -= 1
                data = self._receive()
                if data:
                    return data
                if data is not None:
                    self._end_input()
            if self._has_ended():
                raise self._failure() if self._error is not None else ConnectionResetError("the peer left")
            await self._wait_input()

    # --- searching ----------------------------------------------------------------------------------------------------

    def _reject_long_line(self) -> NoReturn:
        """Discard what was received of an overlong line, as asyncio does, and raise LineTooLongError."""
        at = self._buffer.find(b"\n")
        self._buffer.take(at + 1 if at >= 0 else self._buffer.size)
        raise self._raised(LineTooLongError(NOT_FOUND if at < 0 else FOUND_LATE))

    # --- hooks of the layers below ------------------------------------------------------------------------------------

    def _on_output_broken(self) -> None:
        if self._reader is not None:
            self._reader.wake_soon()

    def _on_reads_resumed(self) -> None:
        if self._reader is not None:
            self._reader.wake()

    def _clear_input(self) -> None:
        self._buffer.clear()

    def _stop_reading(self) -> None:
        """Give the handler no more input: drop what is buffered, and wake it."""
        if self._input is not _FIN:
            self._input = _ENDED
        self._buffer.clear()
        if self._reader is not None:
            self._reader.wake_soon()

    def _close_input(self) -> None:
        self._input = _FIN
        if self._reader is not None:
            self._reader.wake_soon()


if native is not None:
    Receiving = native.Stream  # type: ignore[misc]  # the three layers of the core in C
