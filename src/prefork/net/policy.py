"""What a stream does when something is out of the ordinary: a slow peer, a limit, a deadline, an error.

Layer 4 of a connection, above the core: see `channel.py`. Bytes are moved below; how a connection closes regularly, and
what else a handler calls, is in `stream.py`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable

from ..core.account import CloseReason
from ..errors import ConnectionOverflowError, ConnectionTimeoutError
from ..events import ConnectionAborted
from ..text import escape_ascii, format_address
from .deadlines import Deadline
from .phases import MOVES, ConnectionPhase, Output
from .receiving import Receiving
from .sending import Bytes
from .server_state import ServerState
from .timeouts import TimeoutState
from .tls import TLSEngine
from .transport import StreamTransport
from .waiter import Waiter

#: Seconds until a send is repeated for which the kernel had no memory, because no edge reports that it has some.
SEND_RETRY_DELAY = 0.05


class Policy(Receiving):
    """The layer of a stream that keeps limits, deadlines and errors. Its methods are the hooks of the core."""

    __slots__ = ("_counted_bytes", "_transport")

    def __init__(self, sock: socket.socket, address: object, shared: ServerState) -> None:
        # Not super(): its search of the classes costs 0.5 % of a short connection.
        Receiving.__init__(self, sock, address, shared)
        self._counted_bytes = 0
        """What this connection has in `ServerState.buffered_bytes`."""
        self._transport: StreamTransport | None = None
        """Made when the handler asks for it."""

    def _on_deadline(self, deadline: Deadline) -> None:
        """Do what follows a deadline that has passed."""
        raise NotImplementedError

    # --- errors -------------------------------------------------------------------------------------------------------

    def exception(self) -> BaseException | None:
        """Return the error that broke the connection, or None."""
        error = self._error
        # A timeout that was raised is the cause of what is raised later: see `_failure`.
        return error.__cause__ if error is not None and isinstance(error.__cause__, TimeoutError) else error

    def _failure(self) -> OSError:
        """Return a copy of the error that broke the connection: raising one object again would grow its traceback."""
        error = self._error
        if error is None:
            return self._raised(ConnectionResetError("Connection lost"))
        if isinstance(error, TimeoutError):
            # Only once: a handler that catches the TimeoutError of its own `asyncio.timeout()` and reads again would
            # otherwise loop without ever waiting, and the worker would hang.
            self._error = ConnectionAbortedError(*error.args)
            self._error.__cause__ = error
        copy = type(error)(*error.args)
        copy.__cause__ = error.__cause__
        return self._raised(copy)

    def _is_closed(self) -> bool:
        return self._phase is ConnectionPhase.CLOSED

    def _is_broken(self) -> bool:
        return self._output is Output.BROKEN

    def _enter(self, phase: ConnectionPhase) -> None:
        if phase not in MOVES[self._phase]:
            raise RuntimeError(f"a connection cannot go from {self._phase.name} to {phase.name}")
        self._phase = phase

    # --- the end ------------------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """Close the socket at once: unsent bytes are lost, and a TCP peer gets a reset."""
        if self._phase is ConnectionPhase.CLOSED:
            return
        self._reset_on_close()
        self._clear_input()
        self._dispose()

    def _abort_with(
        self, error: ConnectionTimeoutError | ConnectionOverflowError, reason: CloseReason, logged: bool = True
    ) -> None:
        if logged:
            self._shared.emit(ConnectionAborted(escape_ascii(format_address(self._address)), str(error)))
        error.close_reason = reason
        self._error = error
        self.abort()

    def can_write_eof(self) -> bool:
        """Return whether this direction can be ended on its own: not with TLS."""
        return self._engine is None

    def write_eof(self) -> None:
        """End our direction after what was written; the peer's stays open. Raises NotImplementedError with TLS."""
        if self._engine is not None:
            raise NotImplementedError("TLS cannot end one direction on its own; close() the stream")
        if self._output is not Output.OPEN or self._phase is not ConnectionPhase.OPEN:
            return
        self._flush()
        if self._is_broken():
            return
        self._output = Output.ENDED
        if not self._backlog_size:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        try:
            self._end_output()
        except OSError:
            # ENOTCONN: the peer has reset the connection.
            self._break_output(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _on_disposed(self) -> None:
        deadlines = self._shared.deadlines
        deadlines.clear(self, Deadline.LINGER)
        deadlines.clear(self, Deadline.DELIVERY)
        if self._timeouts is not None:
            self._timeouts.close()
            self._timeouts = None

    def _cork_tls_output(self) -> None:
        # Tickets, an answer to a key update. Of the four sends of a handshake with one answer that saves one.
        if self._engine is not None:
            self._shared.poller.cork(_PendingTLSOutput(self, self._engine))

    # --- timeouts -----------------------------------------------------------------------------------------------------

    def _timeout_state(self) -> TimeoutState:
        state = self._timeouts
        if state is None:
            state = TimeoutState(self, self._shared, self._accepted_at)
            if self._phase is not ConnectionPhase.CLOSED:
                # Otherwise the two would keep each other alive until the next garbage collection.
                self._timeouts = state
        return state

    def _write_timeout(self) -> float:
        return self._shared.limits.write_timeout if self._timeouts is None else self._timeouts.write

    def _restart_write_timeout(self) -> None:
        if self._backlog_size:
            self._shared.deadlines.set(self, Deadline.WRITE, self._write_timeout())

    def _on_write_timeout(self) -> None:
        limit = self._write_timeout()
        option = "--write-timeout" if limit == self._shared.limits.write_timeout else "stream.timeouts.write"
        error = ConnectionTimeoutError(f"peer read nothing for {limit:g} s ({option})")
        self._abort_with(error, CloseReason.WRITE_TIMEOUT)

    # --- unsent bytes -------------------------------------------------------------------------------------------------

    def writelines(self, chunks: Iterable[Bytes]) -> None:
        """Write each of `chunks`, in order."""
        for chunk in chunks:
            self.write(chunk)

    @property
    def drain_above(self) -> int:
        """The high water mark of `drain()` in bytes. Setting it makes the low one 25 % of it; None restores both."""
        return self._water_marks()[1]

    @drain_above.setter
    def drain_above(self, size: int | None) -> None:
        self._set_water_marks(size, None)

    def _set_water_marks(self, high: int | None, low: int | None) -> None:
        if high is None and low is None:
            self._mark_water(None, None)
            return
        if high is None:
            high = 4 * (low or 0)
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._mark_water(low, high)

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        waiter = Waiter(self._shared.loop)
        self._writers = (*(self._writers or ()), waiter)
        try:
            while condition():
                await waiter
        finally:
            self._writers = tuple(each for each in self._writers or () if each is not waiter)

    def _count_bytes(self) -> None:
        memory = self._backlog_memory
        self._shared.buffered_bytes += memory - self._counted_bytes
        self._counted_bytes = memory

    def _on_backlog_added(self) -> None:
        shared = self._shared
        if not self._counted_bytes:
            shared.backlogged.add(self)
            # The deadline is for each step forward, not for all that is unsent.
            shared.deadlines.set(self, Deadline.WRITE, self._write_timeout())
        self._count_bytes()
        limit = shared.limits.abort_above
        if self._backlog_size > limit:
            self._abort_with(
                ConnectionOverflowError(f"{self._backlog_size} bytes unsent, limit {limit} (Limits.abort_above)"),
                CloseReason.UNSENT_LIMIT,
            )
        elif shared.buffered_bytes > shared.limits.max_unsent:
            shared.abort_largest()
        self._control_flow()

    def _on_backlog_sent(self) -> None:
        self._count_bytes()
        self._shared.deadlines.set(self, Deadline.WRITE, self._write_timeout())
        self._control_flow()

    def _on_backlog_empty(self) -> None:
        self._count_bytes()
        shared = self._shared
        shared.backlogged.discard(self)
        shared.deadlines.clear(self, Deadline.WRITE)
        shared.deadlines.clear(self, Deadline.SEND_RETRY)
        self._control_flow()

    def _control_flow(self) -> None:
        """Tell the protocol that a handler has set, if any, when to pause and resume writing."""
        if self._transport is not None:
            self._transport.control_flow()

    def _on_no_memory(self) -> None:
        self._shared.deadlines.set(self, Deadline.SEND_RETRY, SEND_RETRY_DELAY)

    def _buffered_bytes(self) -> int:
        return self._backlog_memory

    def _abort_for_budget(self, total: int, limit: int) -> None:
        self._abort_with(
            ConnectionOverflowError(
                f"{self._buffered_bytes()} bytes unsent, the most of any connection; "
                f"all together {total}, limit {limit} (--max-unsent)"
            ),
            CloseReason.UNSENT_LIMIT,
        )


class _PendingTLSOutput:
    """A corked item that sends the protocol's own output, unless it was sent with an answer."""

    __slots__ = ("_engine", "_stream")

    def __init__(self, stream: Policy, engine: TLSEngine) -> None:
        self._stream = stream
        self._engine = engine

    def _flush(self) -> None:
        self._stream._send_raw(self._engine.pending_output())
