"""Accepting from one listening socket on the running loop, in bounded batches, as far as a gate lets it.

Hands over every connection it accepted, and makes nothing of it: streams, tasks and limits are its callers' business.
"""

from __future__ import annotations

import asyncio
import enum
import select
import socket
import sys
from collections.abc import Callable

from ..core.accept_errors import AcceptError, judge
from ..errors import OutOfResources
from ..events import AcceptPaused, AcceptSkipped, Emit, ListenerBroken, log
from ..system.sockets import describe
from .admission import UNTIL_CAPACITY, Admission
from .short_timer import ShortTimer

#: Connections accepted per readiness event. More would let one worker hoard a burst that others could share, and keep
#: the loop from its other work; fewer costs a turn of the loop more often.
BATCH = 8
#: Seconds that accepting rests when there is no room, unless a connection closes before.
PAUSE = 0.5
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
#: In struct tcp_info (linux/tcp.h).
_UNACKED_AT = 24

Accepted = Callable[[socket.socket, object], object]


class State(enum.Enum):
    """The life of an acceptor."""

    WATCHING = enum.auto()
    """The loop tells when connections wait."""
    BACKING_OFF = enum.auto()
    """For a moment others go first, or the rate has to be kept. The socket is not watched."""
    PAUSED = enum.auto()
    """No room. Rests until `resume()`; where only the system knows when there is some, a moment at most."""
    CLOSED = enum.auto()


class Acceptor:
    """Calls `callback(connection, address)` for each connection that `sock` has, from construction until `close()`.

    The connection is non-blocking, close-on-exec, and the callback's from then on; if the callback raises, it is
    closed, the failure is given to the loop's exception handler, and accepting goes on; after NoRoom it rests. `sock`
    stays its owner's: it is made non-blocking, and never closed. `gate` is asked before each connection. `on_broken` is
    called once if the listening socket itself has failed; accepting has stopped then.
    """

    def __init__(
        self,
        sock: socket.socket,
        callback: Accepted,
        *,
        batch: int = BATCH,
        emit: Emit = log,
        on_broken: Callable[[OSError], object] | None = None,
        gate: Admission | None = None,
    ) -> None:
        # A listener that blocks would stop the worker whenever a sibling takes the connection first. The flag belongs
        # to the open file description, so it is set for all processes that share the socket.
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._kind = (int(sock.family), int(sock.type), sock.proto)
        self._callback = callback
        self._batch = batch
        self._emit = emit
        self._on_broken = on_broken
        self._gate = gate
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._nap: ShortTimer | None = None
        self._reported = False
        self._state = State.WATCHING
        self._loop.add_reader(self._fd, self._ready)

    def resume(self) -> None:
        """There may be room again: go on at once. Does nothing unless accepting is paused."""
        if self._state is State.PAUSED:
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._watch()

    def close(self) -> None:
        """Stop accepting. May be called again; the socket stays open, and its queue is for whoever else holds it."""
        self._stop_watching()
        self._state = State.CLOSED
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._nap is not None:
            self._nap.close()
            self._nap = None

    def accept_waiting(self, most: int) -> None:
        """Accept now what waits in the queue, up to `most` connections: the last thing before `close` where nobody else
        will. What is beyond a limit is refused, and does not wait."""
        self._accept(most, must=True)

    # --- readiness ----------------------------------------------------------------------------------------------------

    def _ready(self) -> None:
        seconds = self._accept(self._batch)
        if seconds is not None and self._still(State.WATCHING):
            self._stop_watching()
            self._rest(seconds)

    def _nap_over(self) -> None:
        if self._state is not State.BACKING_OFF:
            return
        if not _waits(self._fd):
            if self._gate is not None:
                self._gate.missed()
            self._watch()
            return
        seconds = self._accept(self._batch)
        if self._still(State.BACKING_OFF):
            if seconds is None:
                self._watch()
            else:
                self._rest(seconds)

    def _still(self, state: State) -> bool:
        """Asked after a callback, which may have closed us, or run out of descriptors."""
        return self._state is state

    def _rest(self, seconds: float) -> None:
        if seconds == UNTIL_CAPACITY:
            self._state = State.PAUSED
            if self._gate is not None and not self._reported:
                # Once per shortage: room that others take brings us here again and again.
                self._reported = True
                self._emit(AcceptPaused(describe(self._sock), self._gate.why))
            return
        self._state = State.BACKING_OFF
        if self._nap is None:
            self._nap = ShortTimer(self._loop, self._nap_over)
        self._nap.start(seconds)

    def _watch(self) -> None:
        self._state = State.WATCHING
        try:
            self._loop.add_reader(self._fd, self._ready)
        except OSError as exc:
            self._pause(exc)

    def _stop_watching(self) -> None:
        if self._state is State.WATCHING:
            self._loop.remove_reader(self._fd)

    def _waiting(self) -> int:
        """How many connections are in the queue: told of TCP alone (tcp(7), TCP_INFO: unacked, for a listener)."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _UNACKED_AT + 4)
        except OSError:
            return 1
        return int.from_bytes(info[_UNACKED_AT : _UNACKED_AT + 4], sys.byteorder)

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self, most: int, must: bool = False) -> float | None:
        """Up to `most` connections. The seconds for which the gate wants nothing more, None where it says nothing."""
        gate = self._gate
        state = self._state
        if state is State.CLOSED:
            return None
        for _ in range(most):
            if gate is not None:
                seconds = gate.ask(self._waiting, must)
                if seconds is not None:
                    return seconds
            try:
                # What `accept()` does, without making enums of the family and the type: a microsecond a connection.
                fd, address = self._sock._accept()  # type: ignore[attr-defined]  # typeshed leaves it out
            except OSError as exc:
                if gate is not None:
                    gate.nothing()
                # At the end a sibling may have shut the socket down, as there was nothing left to take.
                if (must and judge(exc.errno) is AcceptError.LISTENER) or self._failed(exc):
                    return None
                continue
            self._hand_over(socket.socket(*self._kind, fileno=fd), address)
            # The callback may have closed us; what is still queued is somebody else's then.
            if not self._still(state):
                return None
        return None

    def _failed(self, exc: OSError) -> bool:
        """Whether the batch ends with this error of `accept`."""
        verdict = judge(exc.errno)
        if verdict is AcceptError.CONNECTION:
            self._emit(AcceptSkipped(describe(self._sock), _reason(exc)))
            return False
        if verdict is AcceptError.CAPACITY:
            self._pause(exc)
        elif verdict is AcceptError.LISTENER:
            self._break(exc)
        else:
            # Nobody waits any more: a shortage is over.
            self._reported = False
        return True

    def _hand_over(self, connection: socket.socket, address: object) -> None:
        try:
            connection.setblocking(False)
        except OSError as exc:
            # Of this connection alone: it cannot be served, and is not kept.
            connection.close()
            if self._gate is not None:
                self._gate.nothing()
            self._emit(AcceptSkipped(describe(self._sock), _reason(exc)))
            return
        try:
            self._callback(connection, address)
        except OutOfResources as exc:
            connection.close()
            self._pause(exc)
        except Exception as exc:
            connection.close()
            self._loop.call_exception_handler(
                {
                    "message": f"the callback for a connection accepted on {describe(self._sock)} failed",
                    "exception": exc,
                }
            )

    def _pause(self, exc: OSError) -> None:
        """Rest: the socket stays readable, so going on at once would spin (116,000 exceptions a second, measured)."""
        self._stop_watching()
        self._state = State.PAUSED
        self._retry = self._loop.call_later(PAUSE, self.resume)
        if not self._reported:
            # Once per shortage, not once per attempt.
            self._reported = True
            self._emit(AcceptPaused(describe(self._sock), _reason(exc)))

    def _break(self, exc: OSError) -> None:
        self.close()
        self._emit(ListenerBroken(describe(self._sock), _reason(exc)))
        if self._on_broken is not None:
            self._on_broken(exc)


def _waits(fd: int) -> bool:
    """Whether a connection is in the queue."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        return bool(poll.poll(0))
    except OSError:
        # No memory for it, for example. `accept` will say.
        return True


def add_accept_handler(sock: socket.socket, callback: Callable[[socket.socket, object], object]) -> Callable[[], None]:
    """Call `callback(connection, address)` for each connection that `sock` accepts, in the running loop.

    At most 8 are accepted per readiness event, so that nothing else starves; a connection that died in the queue is
    skipped; running out of descriptors makes accepting rest and is logged once. Returns `remove`, which stops it;
    `sock` stays open and the caller's. Raises RuntimeError where no loop runs. Call-compatible with Tornado's
    `netutil.add_accept_handler`, whose connections are non-blocking too.
    """
    return Acceptor(sock, callback).close


def _reason(exc: OSError) -> str:
    return exc.strerror.lower() if exc.strerror else str(exc)
