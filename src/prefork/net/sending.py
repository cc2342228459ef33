"""The output of a connection in pure Python: corked writes, the unsent bytes that the kernel did not take, and waits.

Layer 2 of the core: see `channel.py`. How much may be unsent, for how long, and how the connection closes, is decided
above.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

from ..core.buffer import WriteBacklog
from .channel import DONTWAIT, MAX_IO_BEFORE_YIELD, Channel
from .phases import ConnectionPhase, Output
from .poller import WRITE
from .server_state import ServerState
from .waiter import Waiter

Bytes = bytes | bytearray | memoryview

#: The value of `_corked` while nothing is corked: shared and never changed. A list for each connection costs 56 bytes.
_NOTHING: list[bytes] = []
_OUT_OF_MEMORY = frozenset({errno.ENOBUFS, errno.ENOMEM})

# Looked up for each write; an attribute of an enum class costs twice as much as a global.
_OPEN, _OUTPUT_OPEN, _BROKEN = ConnectionPhase.OPEN, Output.OPEN, Output.BROKEN


class Sending(Channel):
    """The layer of a stream that buffers and sends output."""

    __slots__ = ("_backlog", "_corked", "_corked_size", "_in_callback", "_output", "_retrying", "_water", "_writers")

    def __init__(self, sock: socket.socket, address: object, shared: ServerState) -> None:
        # Not super(): its search of the classes costs 0.5 % of a short connection.
        Channel.__init__(self, sock, address, shared)
        self._output = _OUTPUT_OPEN
        self._corked = _NOTHING
        self._corked_size = 0
        self._in_callback = False
        """The reader's task runs inside `_on_ready`, which flushes when it returns. So `write` need not register with
        the poller, which saves 3 % of a 1 KiB echo."""
        self._backlog: WriteBacklog | None = None
        self._retrying = False
        """The kernel had no memory for a send, which is repeated later."""
        self._writers: tuple[Waiter, ...] = ()
        self._water: tuple[int, int] | None = None
        """The low and high water marks that were set; None: as `Limits.drain_above` has them."""

    # --- hooks: what the layers above do ------------------------------------------------------------------------------

    def _on_backlog_added(self) -> None:
        """Keep the limits: more bytes are unsent than before."""
        raise NotImplementedError

    def _on_backlog_sent(self) -> None:
        """Start the write timeout anew: the peer has read some of the unsent bytes."""
        raise NotImplementedError

    def _on_backlog_empty(self) -> None:
        """End the write timeout: no byte is unsent, because all are sent or lost."""
        raise NotImplementedError

    def _on_no_memory(self) -> None:
        """Call `_on_writable` later, because the kernel has no memory for a send, and no event will report some."""
        raise NotImplementedError

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        """Wait in a writing task. The condition is tested when output was sent, and when the end has come closer."""
        raise NotImplementedError

    def _on_output_sent(self) -> None:
        """Continue with the end that was asked for: nothing is left to send."""
        raise NotImplementedError

    def _on_output_broken(self) -> None:
        """Wake the reader: it may have waited for the peer to read what is now lost."""
        raise NotImplementedError

    def _on_reads_resumed(self) -> None:
        """Wake the reader: no longer too much is unsent."""
        raise NotImplementedError

    # --- what a handler calls -----------------------------------------------------------------------------------------

    def write(self, data: Bytes) -> None:
        """Send `data`, in order, when the output is uncorked. Never waits, and never raises for a peer that is gone.

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
            if not self._in_callback:
                self._shared.poller.cork(self)
            self._corked = [data]
        self._corked_size += len(data)
        if self._corked_size >= self._shared.limits.flush_at:
            self._flush()

    async def send(self, data: Bytes) -> None:
        """Write `data` and wait for `drain()`."""
        self.write(data)
        await self.drain()

    async def drain(self) -> None:
        """Send what was written. If more than the high water mark stays unsent, wait until the low one is reached.

        The marks are `Limits.drain_above` and 25 % of it, unless they were set for this stream. Raises
        ConnectionResetError once the peer is gone or the stream is closed; ConnectionOverflowError or
        ConnectionTimeoutError if prefork aborted the connection. Cancelling it only ends the wait.
        """
        if self._corked:
            self._flush()
        if self._backlog is not None and self._backlog.size > self._water_marks()[1]:
            await self._wait_while(self._above_low_water)
        if self._output is Output.BROKEN or self._phase is not _OPEN:
            # Let others run, otherwise a handler that ignores this error would block the loop.
            await asyncio.sleep(0)
            raise self._failure()
        self._io_left -= 1
        if not self._io_left:
            self._io_left = MAX_IO_BEFORE_YIELD
            await asyncio.sleep(0)

    @property
    def unsent(self) -> int:
        """Bytes that were written and that the kernel has not taken."""
        return self._corked_size + (0 if self._backlog is None else self._backlog.size)

    @property
    def _backlog_size(self) -> int:
        return 0 if self._backlog is None else self._backlog.size

    @property
    def _backlog_memory(self) -> int:
        return 0 if self._backlog is None else self._backlog.memory

    def _water_marks(self) -> tuple[int, int]:
        high = self._shared.limits.drain_above
        return self._water or (high // 4, high)

    def _mark_water(self, low: int | None, high: int | None) -> None:
        """Set the water marks of `drain()`; None restores those of the limits."""
        self._water = None if low is None or high is None else (low, high)

    def _above_low_water(self) -> bool:
        return self._backlog is not None and self._backlog.size > self._water_marks()[0]

    # --- sending ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send what is corked. What the kernel does not take follows when it is writable."""
        corked = self._corked
        if not corked:
            return
        data: bytes | memoryview = corked[0] if len(corked) == 1 else b"".join(corked)
        self._corked = _NOTHING
        self._corked_size = 0
        if self._engine is not None:
            try:
                data = self._engine.encrypt(data)
            except ssl.SSLError as exc:
                self._break_output(ConnectionAbortedError(f"TLS: {exc.reason or exc}"))
                return
        if self._backlog is None:
            # The kernel takes all of it nearly always. `_send_raw` without its calls saves 10 % of a small echo.
            try:
                sent = self._sock.send(data, DONTWAIT)
            except OSError as exc:
                self._on_send_error(exc)
                if self._is_broken():
                    return
                sent = 0
            self._count_sent(sent)
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._enqueue(data)

    def _send_raw(self, data: bytes) -> None:
        """Send bytes as they go over the wire, behind those that are unsent already."""
        if not data or self._is_broken():
            return
        remainder: bytes | memoryview = data
        if self._backlog is None:
            sent = self._send(data)
            if sent == len(data) or self._is_broken():
                return
            remainder = memoryview(data)[sent:]
        self._enqueue(remainder)

    def _send(self, data: bytes | memoryview) -> int:
        """Return how many bytes the kernel took. An error breaks the output unless it is temporary."""
        try:
            sent = self._sock.send(data, DONTWAIT)
        except OSError as exc:
            self._on_send_error(exc)
            return 0
        self._count_sent(sent)
        return sent

    def _count_sent(self, count: int) -> None:
        self._sent += count
        self._shared.account.traffic[1] += count

    def _on_send_error(self, exc: OSError) -> None:
        if exc.errno in _OUT_OF_MEMORY:
            self._retrying = True
            self._on_no_memory()
        elif not isinstance(exc, BlockingIOError | InterruptedError):
            self._break_output(exc)

    # --- unsent bytes -------------------------------------------------------------------------------------------------

    def _reads_paused(self) -> bool:
        backlog = self._backlog
        return backlog is not None and backlog.size > self._shared.limits.pause_reads_above

    def _enqueue(self, data: bytes | memoryview) -> None:
        """Keep what the kernel did not take, until it has room."""
        backlog = self._backlog
        if backlog is None:
            backlog = self._backlog = WriteBacklog()
            self._arm_writable()
        backlog.append(data)
        self._on_backlog_added()

    def _arm_writable(self) -> None:
        # A socket whose send is to be repeated is writable all the time.
        if not self._shared.poller.edge and not self._retrying:
            self._shared.poller.arm(self._fd, WRITE)

    def _on_writable(self) -> None:
        """Send what is unsent, if anything, up to MAX_IO_BEFORE_YIELD pieces."""
        backlog = self._backlog
        if backlog is None:
            return
        self._retrying = False
        size = backlog.size
        paused = self._reads_paused()
        for _ in range(MAX_IO_BEFORE_YIELD):
            head = backlog.head()
            sent = self._send(head)
            if self._backlog is None:
                return
            if sent:
                backlog.advance(sent)
            if not backlog.size or sent < len(head):
                break
        else:
            self._shared.loop.call_soon(self._on_writable)
        if not backlog.size:
            self._forget_backlog()
            self._on_output_sent()
        elif backlog.size < size:
            self._on_backlog_sent()
        if self._backlog is not None:
            self._arm_writable()
        if not self._above_low_water():
            for waiter in self._writers:
                waiter.wake()
        if paused and not self._reads_paused():
            self._on_reads_resumed()

    def _end_output(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _is_broken(self) -> bool:
        return self._output is _BROKEN

    def _break_output(self, error: OSError) -> None:
        """Give up sending: the peer accepts no more data. What it sent before can still be read."""
        self._output = Output.BROKEN
        self._reset_on_close()
        self._drop_output()
        if self._phase is not ConnectionPhase.OPEN:
            self._dispose()
            return
        self._error = self._error or error
        self._on_output_broken()
        self._wake_writers_soon()

    def _wake_writers_soon(self) -> None:
        for waiter in self._writers:
            waiter.wake_soon()

    def _drop_output(self) -> None:
        self._corked = _NOTHING
        self._corked_size = 0
        if self._backlog is not None:
            self._forget_backlog()

    def _forget_backlog(self) -> None:
        """Forget the unsent bytes, because they are sent or lost."""
        self._backlog = None
        self._retrying = False
        self._on_backlog_empty()

    def _close_output(self) -> None:
        self._output = _BROKEN
        self._drop_output()
        if self._writers:
            self._wake_writers_soon()
