"""The socket of one connection: receiving into a buffer, sending what was corked, and closing without loss.

Everything here is synchronous and is called either by the poller or by the connection's own tasks; what a handler
awaits is in `stream.py`, which builds on this. No byte and no state of a connection is kept anywhere else.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import Callable

from ..core.buffer import ReadBuffer, WriteBacklog
from ..errors import ConnectionOverflow, ConnectionTimedOut
from ..events import ConnectionAborted
from ..text import escape_ascii, format_address
from .poller import ERROR, HANGUP_OR_ERROR, READ, WRITE
from .server_state import ServerState
from .tls import TLSEngine
from .waiter import Waiter

#: One read of the socket into the buffer: a message of 64 KiB, and what four records of TLS add to it.
RECEIVE = 65 * 1024
#: One read that goes straight to a handler that wants so much.
BULK = 256 * 1024
#: Seconds after which a send is tried again that the kernel had no memory for: no edge tells that it has some.
SHORTAGE_REST = 0.05
#: How many reads or writes one task may do before the others get their turn, if its peer never makes it wait.
MAX_IO_PER_TICK = 32

#: What is corked while nothing is; shared by all, and never changed. A list of its own would be 56 bytes of each.
NOTHING: list[bytes] = []
#: A call of ours never waits, whatever has become of the socket's O_NONBLOCK: a child that has the socket as its
#: standard input may clear it for all, and a number that was closed may be another file's.
DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
_SHORTAGE = frozenset({errno.ENOBUFS, errno.ENOMEM})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Phase(enum.Enum):
    """The life of a connection; it only goes forward, and may skip."""

    OPEN = enum.auto()
    CLOSING = enum.auto()
    """`close()` was called; what was written is being sent. Input is thrown away."""
    LINGERING = enum.auto()
    """All is sent and the peer has been told the end; its own end is awaited, briefly."""
    CLOSED = enum.auto()
    """The socket is closed."""


# Looked up for each event; an attribute of an enum class costs twice what a global does.
_OPEN = Phase.OPEN
_INPUT = READ | HANGUP_OR_ERROR


class Output(enum.Enum):
    """Our direction of an open connection."""

    OPEN = enum.auto()
    ENDED = enum.auto()
    """`write_eof()` was called."""
    LOST = enum.auto()
    """The peer takes nothing any more."""


class Channel:
    """Owns a connected, non-blocking socket, from construction until it closes it.

    `on_closed` is called once, when the socket has been closed, whoever or whatever closed it.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_backlog",
        "_buffer",
        "_corked",
        "_corked_size",
        "_drain_above",
        "_ended",
        "_engine",
        "_error",
        "_fd",
        "_fin",
        "_hangup",
        "_heard",
        "_hub",
        "_idle",
        "_internet",
        "_max_age",
        "_output",
        "_phase",
        "_readable",
        "_reader",
        "_resting",
        "_shown",
        "_since",
        "_sock",
        "_stepped",
        "_timed",
        "_turns",
        "_waiting_since",
        "_write_timeout",
        "_writers",
        "on_closed",
    )

    def __init__(self, sock: socket.socket, address: object, hub: ServerState) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._address = address
        self._hub = hub
        self._phase = Phase.OPEN
        self._output = Output.OPEN
        self._engine: TLSEngine | None = None
        self._error: OSError | None = None
        self.on_closed: Callable[[], None] | None = None

        self._buffer = ReadBuffer()
        self._reader: Waiter | None = None
        self._ended = False
        self._fin = False
        # Input: try first. An edge is never repeated, so "readable" is believed until the kernel says otherwise.
        self._readable = True
        self._hangup = False
        # A read that gives less than it may has emptied a TCP socket (epoll(7)); a unix socket may stop at a boundary.
        # By the address: a socket's `family` makes an enum each time, for a hundredth of what a short connection costs.
        self._internet = type(address) is tuple
        self._turns = 0

        # Deadlines: None is none. "Heard" is whether the peer has said something since the handler last began to wait;
        # None: nothing at all.
        self._timed = False
        """Whether a deadline was set, ever."""
        self._since = hub.loop.time()
        self._waiting_since = self._since
        self._heard: bool | None = None
        self._idle: float | None = None
        self._write_timeout = hub.limits.write_timeout
        self._max_age: float | None = None

        self._corked = NOTHING
        self._corked_size = 0
        self._shown = False
        """Somebody was given the socket, and may have made a copy of it, or passed it on to a child."""
        self._stepped = False
        """The reading task runs, and what it writes is sent when it waits, for whatever: it need not be corked by the
        poller, which would cost a small echo a thirtieth more."""
        self._backlog: WriteBacklog | None = None
        self._resting = False
        """The kernel had no memory for what is unsent; it is sent again when its timer comes."""
        self._writers: tuple[Waiter, ...] = ()
        self._drain_above = hub.limits.drain_above

        hub.poller.add(self._fd, self)
        if hub.limits.max_age is not None:
            self.limit_age(hub.limits.max_age)

    # --- readiness ----------------------------------------------------------------------------------------------------

    def on_ready(self, mask: int) -> None:
        """The poller reports. Sending goes first: a reader that is held back by unsent bytes may go on after it."""
        if mask & HANGUP_OR_ERROR:
            # A hang-up brings no further edge: the end that is behind the data must be read for, short reads or not.
            self._hangup = True
            if mask & ERROR:
                self._note_error()
        if mask & WRITE and self._backlog is not None:
            self._resume()
        if mask & _INPUT and not self._fin:
            self._readable = True
            if self._phase is _OPEN:
                reader = self._reader
                if reader is not None and (self._backlog is None or not self._held()):
                    self._stepped = True
                    try:
                        reader.wake()
                    finally:
                        self._stepped = False
                        if self._corked:
                            self.flush()
            else:
                self._discard()

    def on_expired(self, phase: str) -> None:
        """A deadline has passed."""
        if self._phase is Phase.CLOSED:
            # By another one that has passed in the same moment.
            return
        if phase == "linger":
            if self._engine is not None and self._undelivered():
                # The peer still takes what it was sent: closing now, with its input unread, would destroy the rest.
                self._set_deadline("linger until delivered", self._hub.limits.linger_timeout)
            else:
                self._dispose()
        elif phase == "linger until delivered":
            self._dispose()
        elif phase == "write":
            limit = self._write_timeout
            self._cut_off(ConnectionTimedOut(f"the peer took nothing of what was sent for {limit:g} s"))
        elif phase == "shortage":
            self._resting = False
            self._resume_later()
        elif phase == "first byte":
            if self._heard is None and self._phase is Phase.OPEN:
                self._cut_off(ConnectionTimedOut("the peer has not said a word"))
        elif phase == "idle":
            self._look_idle()
        elif phase == "age":
            self._cut_off(ConnectionTimedOut(f"it was open for {self._max_age:g} s"))
        else:
            self._cut_off(ConnectionTimedOut(f"{phase} took too long"), noted=phase != "handshake")

    def _set_deadline(self, phase: str, seconds: float) -> None:
        self._timed = True
        self._hub.deadlines.set(self, phase, seconds)

    def begin_deadlines(self) -> None:
        """The handler is there from now on."""
        limits = self._hub.limits
        self._heard = True if self._buffer.size else None
        if limits.first_byte_timeout is not None:
            self._set_deadline("first byte", limits.first_byte_timeout)
        if limits.idle_timeout is not None:
            self.limit_idle(limits.idle_timeout)

    def limit_idle(self, seconds: float | None) -> None:
        """See `Timeouts.idle`."""
        self._idle = seconds
        self._waiting_since = self._hub.loop.time()
        if seconds is None or self._is_closed():
            self._hub.deadlines.clear(self, "idle")
        else:
            self._set_deadline("idle", seconds)

    def limit_write(self, seconds: float) -> None:
        """See `Timeouts.write`."""
        self._write_timeout = seconds
        if self._backlog is not None:
            self._set_deadline("write", seconds)

    def limit_age(self, seconds: float | None) -> None:
        """See `Timeouts.age`."""
        self._max_age = seconds
        if seconds is None or self._is_closed():
            self._hub.deadlines.clear(self, "age")
        else:
            self._set_deadline("age", self._since + seconds - self._hub.loop.time())

    def _look_idle(self) -> None:
        """The deadline is not moved with each byte that comes: whether it has passed is found out when it comes up."""
        if self._idle is None or self._phase is not Phase.OPEN:
            return
        left = self._idle
        if self._reader is not None and self._reader.waiting and not self._held():
            left = self._waiting_since + self._idle - self._hub.loop.time()
            if left <= 0:
                self._cut_off(ConnectionTimedOut(f"the peer said nothing for {self._idle:g} s"))
                return
        self._set_deadline("idle", left)

    def _note_error(self) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lose_output(OSError(code, os.strerror(code)))

    # --- input --------------------------------------------------------------------------------------------------------

    def _is_closed(self) -> bool:
        return self._phase is Phase.CLOSED

    def _is_lost(self) -> bool:
        return self._output is Output.LOST

    def _held(self) -> bool:
        """Whether reading waits because too much is unsent."""
        backlog = self._backlog
        return backlog is not None and backlog.size > self._hub.limits.pause_reads_above

    def _receive(self, size: int = RECEIVE) -> bytes | None:
        """One read of the socket: b"" at its end, None if there is nothing now."""
        try:
            data = self._sock.recv(size, DONTWAIT)
        except (BlockingIOError, InterruptedError):
            self._readable = self._hangup = False
            return None
        except OSError as exc:
            self._break(exc)
            return b""
        self._heard = True
        if not data:
            self._fin = True
            self._readable = False
        elif len(data) < size and self._internet and not self._hangup:
            self._readable = False
        return data

    def _pull(self, wanted: int = 0) -> bool:
        """Read once into the buffer, more where more is `wanted`. False: nothing came, and the caller has to wait, or
        the input has ended."""
        if not self._readable or self._ended or self._turns >= MAX_IO_PER_TICK or self._held():
            return False
        self._received(self._receive(RECEIVE if wanted <= RECEIVE else min(wanted, BULK)))
        return self._buffer.size > 0 or self._readable

    def _received(self, data: bytes | None) -> None:
        """Do with `data` as what `_receive` says it is."""
        if data is None:
            return
        self._turns += 1
        if not data:
            self._end_input()
        elif self._engine is None:
            self._buffer.feed(data)
        elif plain := self._decrypt(self._engine, data):
            self._buffer.feed(plain)

    def _decrypt(self, engine: TLSEngine, data: bytes) -> bytes:
        """What `data` says; b"" where it says nothing yet, or is broken, or the end."""
        try:
            plain = engine.decrypt(data)
        except ssl.SSLError as exc:
            self._transmit(engine.outgoing())
            self._break(ConnectionAbortedError(f"TLS: {exc.reason or exc}"))
            return b""
        if engine.said.pending:
            # What the protocol itself has to say (tickets, an answer to a key update) goes with the handler's next
            # answer, or at the end of the round: of the four sends of a handshake with one answer it saves one.
            self._hub.poller.cork(_Rest(self, engine))
        if engine.ended:
            self._end_input()
        return plain

    def _end_input(self) -> None:
        """The peer has said its last byte."""
        self._ended = True
        if self._engine is not None and not self._engine.ended:
            self._engine.info.truncated = True

    def _discard(self) -> None:
        """Closing: throw input away, so that no unread byte makes the kernel answer our close with a reset."""
        for _ in range(MAX_IO_PER_TICK):
            if self._fin:
                return
            data = self._receive() if self._readable else None
            if data is None:
                if not self._hub.poller.edge:
                    self._hub.poller.arm(self._fd, READ)
                return
            if not data:
                if self._phase is Phase.LINGERING:
                    self._dispose()
                return
        self._hub.loop.call_soon(self._discard)

    # --- output -------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what is corked, as far as the kernel takes it; the rest follows when it can."""
        corked = self._corked
        if not corked:
            return
        data: bytes | memoryview = corked[0] if len(corked) == 1 else b"".join(corked)
        self._corked = NOTHING
        self._corked_size = 0
        if self._engine is not None:
            try:
                data = self._engine.encrypt(data)
            except ssl.SSLError as exc:
                self._lose_output(ConnectionAbortedError(f"TLS: {exc.reason or exc}"))
                return
        if self._backlog is None:
            # Nearly always the kernel takes it all: `_transmit` without its calls, for a tenth of a small echo's time.
            try:
                sent = self._sock.send(data, DONTWAIT)
            except OSError as exc:
                self._send_failed(exc)
                if self._is_lost():
                    return
                sent = 0
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._hold_back(data)

    def _transmit(self, data: bytes) -> None:
        """Send bytes as they go over the wire, behind those that wait already."""
        if not data or self._is_lost():
            return
        rest: bytes | memoryview = data
        if self._backlog is None:
            sent = self._send(data)
            if sent == len(data) or self._is_lost():
                return
            rest = memoryview(data)[sent:]
        self._hold_back(rest)

    def _hold_back(self, data: bytes | memoryview) -> None:
        """Keep what the kernel did not take, up to the limit."""
        hub = self._hub
        backlog = self._backlog
        if backlog is None:
            backlog = self._backlog = WriteBacklog()
            hub.held_back.add(self)
            self._await_room()
        before = backlog.held
        backlog.append(data)
        hub.held += backlog.held - before
        limit = hub.limits.abort_above
        if backlog.size > limit:
            self._cut_off(ConnectionOverflow(f"{backlog.size} bytes unsent, the limit is {limit}"))
        elif hub.held > hub.limits.max_unsent:
            hub.shed()

    def held_back(self) -> int:
        """Bytes that are kept for the peer to take."""
        return 0 if self._backlog is None else self._backlog.held

    def shed(self, held: int, most: int) -> None:
        """All connections together have too much unsent, and this one most of it."""
        self._cut_off(
            ConnectionOverflow(
                f"{self.held_back()} bytes unsent, the most of {held} of all connections, which may have {most} "
                "(--max-unsent)"
            )
        )

    def _send(self, data: bytes | memoryview) -> int:
        """How many bytes the kernel took; an error ends the output, unless it may pass."""
        try:
            return self._sock.send(data, DONTWAIT)
        except OSError as exc:
            self._send_failed(exc)
            return 0

    def _send_failed(self, exc: OSError) -> None:
        """The kernel is full, or short of memory: what is unsent is kept. By any other error it is lost."""
        if exc.errno in _SHORTAGE:
            self._resting = True
            self._set_deadline("shortage", SHORTAGE_REST)
        elif not isinstance(exc, BlockingIOError | InterruptedError):
            self._lose_output(exc)

    def _await_room(self) -> None:
        """The kernel is full: it will report room; the deadline is for each step forward, not for the whole."""
        self._set_deadline("write", self._write_timeout)
        self._arm_for_room()

    def _arm_for_room(self) -> None:
        # A socket that rests is writable all the time.
        if not self._hub.poller.edge and not self._resting:
            self._hub.poller.arm(self._fd, WRITE)

    def _resume(self) -> None:
        """The kernel has room again."""
        backlog = self._backlog
        assert backlog is not None
        before = backlog.size
        held = self._held()
        for _ in range(MAX_IO_PER_TICK):
            head = backlog.head()
            sent = self._send(head)
            if self._backlog is None:
                return
            if sent:
                before_held = backlog.held
                backlog.advance(sent)
                self._hub.held -= before_held - backlog.held
            if not backlog.size or sent < len(head):
                break
        else:
            self._hub.loop.call_soon(self._resume_later)
        if backlog.size:
            if backlog.size < before:
                self._await_room()
            else:
                self._arm_for_room()
        else:
            self._drop_backlog()
            self._output_sent()
        if self._backlog is None or backlog.size <= self._drain_above // 4:
            self._wake_writers()
        if held and self._reader is not None and not self._held():
            self._reader.wake()

    def _resume_later(self) -> None:
        if self._backlog is not None:
            self._resume()

    def _output_sent(self) -> None:
        """Nothing is left to send: go on with the end that was asked for."""
        if self._phase is Phase.CLOSING:
            self._linger()
        elif self._output is Output.ENDED:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            # ENOTCONN: the peer has reset the connection; there is nobody to tell.
            self._lose_output(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _wake_writers(self) -> None:
        """Those who wait for room, or for the end, look again. From a callback of the loop only."""
        for waiter in self._writers:
            waiter.wake()

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what was written, tell the peer the end, wait for its end for a while, and close the socket.

        Returns at once and can be called again. A task that waits for input meanwhile gets the end of it.
        """
        if self._phase is not Phase.OPEN:
            return
        self.flush()
        if self._is_closed():
            return
        self._phase = Phase.CLOSING
        self._ended = True
        self._buffer.clear()
        if self._reader is not None:
            self._reader.wake_soon()
        if self._output is Output.LOST:
            self._dispose()
        elif self._backlog is None:
            self._linger()
        else:
            self._discard_soon()

    def abort(self) -> None:
        """Close the socket at once: unsent bytes are lost, and a TCP peer gets a reset."""
        if self._phase is Phase.CLOSED:
            return
        self._reset_on_close()
        self._buffer.clear()
        self._dispose()

    def _reset_on_close(self) -> None:
        """Have a TCP peer told that bytes were lost: a clean end would say that it has all."""
        if self._internet:
            # Fails where the peer's reset came first.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def _linger(self) -> None:
        """All is sent: say the end, and stay until the peer has said its own.

        A socket that is closed with input unread, or that gets more of it later, answers with a reset, and the reset
        destroys what the peer has not read yet (RFC 1122, 4.2.2.13; RFC 7230, 6.6).
        """
        engine = self._engine
        if engine is not None and not engine.closing:
            self._transmit(engine.close_notify())
            if self._backlog is not None:
                # Called again when it has gone out.
                return
        # Where the peer has ended the close says it as well, for a twentieth less of a short connection, unless
        # somebody else may hold the socket yet.
        if self._output is Output.OPEN and (not self._fin or self._shown or self._hub.forked):
            self._shut_down_writing()
        if self._is_lost() or self._fin:
            self._dispose()
            return
        self._phase = Phase.LINGERING
        limits = self._hub.limits
        seconds = limits.linger_timeout if engine is None else limits.tls_shutdown_timeout
        self._set_deadline("linger", seconds)
        for waiter in self._writers:
            waiter.wake_soon()
        self._discard_soon()

    def _discard_soon(self) -> None:
        # Input that was there before brings no new edge.
        self._readable = True
        self._hub.loop.call_soon(self._discard)

    def _undelivered(self) -> bool:
        """Whether the kernel still has bytes that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
        try:
            (count,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.TIOCOUTQ, b"\0\0\0\0"))
        except OSError:
            return False
        return bool(count)

    def _lose_output(self, exc: OSError) -> None:
        """The peer takes nothing any more. What it sent before can still be read."""
        self._output = Output.LOST
        self._reset_on_close()
        self._drop_output()
        if self._phase is not Phase.OPEN:
            self._dispose()
            return
        self._error = self._error or exc
        if self._reader is not None:
            # It may have waited for the peer to take what was unsent.
            self._reader.wake_soon()
        for waiter in self._writers:
            waiter.wake_soon()

    def _drop_output(self) -> None:
        self._corked = NOTHING
        self._corked_size = 0
        self._drop_backlog()

    def _drop_backlog(self) -> None:
        """It is sent, or lost."""
        hub, backlog = self._hub, self._backlog
        if backlog is not None:
            hub.held -= backlog.held
            hub.held_back.discard(self)
            self._backlog = None
            self._resting = False
            hub.deadlines.clear(self, "write")
            hub.deadlines.clear(self, "shortage")

    def _break(self, exc: OSError) -> None:
        """The connection is dead in both directions. After `close()` that is how some peers end: no error."""
        if self._phase is Phase.OPEN:
            self._error = self._error or exc
        self._dispose()

    def _cut_off(self, exc: ConnectionAbortedError, noted: bool = True) -> None:
        """We end it: a limit was passed."""
        if noted:
            self._hub.emit(ConnectionAborted(self._peer(), str(exc)))
        self._error = exc
        self.abort()

    def _dispose(self) -> None:
        """Close the socket and wake everybody; the only way out of the other phases."""
        if self._phase is Phase.CLOSED:
            return
        self._phase = Phase.CLOSED
        self._ended = self._fin = True
        self._readable = False
        self._output = Output.LOST
        self._drop_output()
        hub = self._hub
        # Before the close: a descriptor that some other process still holds would go on reporting.
        hub.poller.remove(self._fd, self, self._shown or hub.forked)
        if self._timed:
            for phase in ("linger", "linger until delivered", "handshake", "first byte", "idle", "age"):
                hub.deadlines.clear(self, phase)
        self._sock.close()
        if self._reader is not None:
            self._reader.wake_soon()
        for waiter in self._writers:
            waiter.wake_soon()
        if self.on_closed is not None:
            on_closed, self.on_closed = self.on_closed, None
            on_closed()

    def _peer(self) -> str:
        """The peer for a log line."""
        return escape_ascii(format_address(self._address))


class _Rest:
    """What a TLS engine has to say, unless it has been said by then."""

    __slots__ = ("_channel", "_engine")

    def __init__(self, channel: Channel, engine: TLSEngine) -> None:
        self._channel = channel
        self._engine = engine

    def flush(self) -> None:
        """The round is over."""
        self._channel._transmit(self._engine.outgoing())
