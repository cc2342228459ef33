"""Accepting from one listening socket on the running loop: in bounded batches, as far as an admission grants permits.

Every accepted connection goes to a callback. Streams, tasks and limits do not belong here.
"""

from __future__ import annotations

import asyncio
import enum
import math
import socket
from collections.abc import Callable
from typing import Any

from ..core.accept_errors import AcceptError, classify
from ..errors import OutOfResourcesError, reason_of
from ..events import AcceptPaused, AcceptSkipped, Emit, ListenerBroken, log
from ..system.sockets import describe
from ..system.tcp_info import queue_length
from .admission import GRANTED, Admission, Blocked, RetryAfter, Unlimited
from .cpython import descriptor_acceptor

#: Connections accepted per readiness event. More would let one worker hoard a burst that others could share, and keep
#: the loop from its other work; fewer costs a loop iteration more often.
BATCH = 8
#: Seconds after which a batch ends, because a handler computes before it first waits. The rest may be others' to serve,
#: and what waits in this worker's inbox would wait for the whole batch.
BATCH_SECONDS = 0.001
#: Seconds of a pause for lack of descriptors or memory, unless a connection closes before.
PAUSE = 0.5

# Looked up for each connection; an attribute of an enum class costs twice as much as a global.
_EMPTY = AcceptError.EMPTY

OnAccepted = Callable[[socket.socket, Any], object]


class AcceptorState(enum.Enum):
    """The life of an acceptor."""

    WATCHING = enum.auto()
    """The loop reports when connections wait."""
    BACKING_OFF = enum.auto()
    """The socket is not watched, for less than a second: a sibling goes first, or the accept rate must be kept."""
    PAUSED = enum.auto()
    """No capacity: waits for `resume()`, and for at most PAUSE seconds if only the system knows when there is some."""
    CLOSED = enum.auto()


#: The legal moves. BACKING_OFF and PAUSED may be entered again, by another attempt that was in vain.
_MOVES = {
    AcceptorState.WATCHING: {AcceptorState.BACKING_OFF, AcceptorState.PAUSED, AcceptorState.CLOSED},
    AcceptorState.BACKING_OFF: {
        AcceptorState.WATCHING,
        AcceptorState.BACKING_OFF,
        AcceptorState.PAUSED,
        AcceptorState.CLOSED,
    },
    AcceptorState.PAUSED: {AcceptorState.WATCHING, AcceptorState.PAUSED, AcceptorState.CLOSED},
    AcceptorState.CLOSED: {AcceptorState.CLOSED},
}


class Acceptor:
    """Calls `callback(connection, address)` for each connection of `sock`, from construction until `close()`.

    The connection is non-blocking, close-on-exec, and owned by the callback. If the callback raises, the connection is
    closed, the loop's exception handler gets the error, and accepting goes on; after OutOfResourcesError it pauses.
    `sock` is made non-blocking and never closed. `admission` is asked before each connection. `on_broken` is called
    once, if the listening socket itself has failed; accepting has stopped then.
    """

    def __init__(
        self,
        sock: socket.socket,
        callback: OnAccepted,
        *,
        batch: int = BATCH,
        emit: Emit = log,
        on_broken: Callable[[OSError], object] | None = None,
        admission: Admission | None = None,
    ) -> None:
        # A blocking listener would stop the loop whenever a sibling accepts the connection first. The flag belongs to
        # the open file description, so it is set for all processes that share the socket.
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._accept_descriptor = descriptor_acceptor(sock)
        self._kind = (int(sock.family), int(sock.type), sock.proto)
        self._callback = callback
        self._batch = batch
        self._emit = emit
        self._on_broken = on_broken
        self._admission: Admission = Unlimited() if admission is None else admission
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._reported = False
        """Whether the present shortage was reported: once, however many attempts it takes to end it."""
        self._pause_reason = ""
        self._state = AcceptorState.WATCHING
        self._loop.add_reader(self._fd, self._accept_batch)

    def resume(self) -> None:
        """Go on at once, because there may be capacity again. Do nothing unless accepting is paused."""
        if self._state is AcceptorState.PAUSED:
            self._watch()

    @property
    def paused_for(self) -> str:
        """Why it does not accept for now; "" if it does."""
        return self._pause_reason if self._state is AcceptorState.PAUSED else ""

    def close(self) -> None:
        """Stop accepting (idempotent). The socket stays open; its accept queue is left to other processes."""
        self._enter(AcceptorState.CLOSED)

    def accept_waiting(self, limit: int) -> None:
        """Accept now up to `limit` queued connections, the last thing before `close` when nothing accepts after.

        What is beyond a limit is refused and does not wait.
        """
        if self._state is not AcceptorState.CLOSED:
            self._accept(limit, force=True)

    # --- states -------------------------------------------------------------------------------------------------------

    def _enter(self, state: AcceptorState) -> None:
        if state not in _MOVES[self._state]:
            raise RuntimeError(f"an acceptor cannot go from {self._state.name} to {state.name}")
        if self._state is AcceptorState.WATCHING:
            self._loop.remove_reader(self._fd)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._state = state

    def _watch(self) -> None:
        self._enter(AcceptorState.WATCHING)
        try:
            self._loop.add_reader(self._fd, self._accept_batch)
        except OSError as exc:
            self._pause(exc)

    def _accept_batch(self) -> None:
        state = self._state
        answer = self._accept(self._batch)
        if self._state is not state:
            # A callback closed this acceptor, or descriptors ran out.
            return
        if answer is None:
            if state is not AcceptorState.WATCHING:
                self._watch()
        elif isinstance(answer, Blocked):
            self._enter(AcceptorState.PAUSED)
            self._report(answer.reason, answer.is_event)
        else:
            self._back_off(answer.seconds)

    def queue_length(self) -> int:
        """Return the number of connections in the accept queue; 0 for a unix socket, which does not tell."""
        return queue_length(self._sock)

    def back_off(self, seconds: float) -> None:
        """Stop accepting for some seconds, unless it has stopped already."""
        if self._state is AcceptorState.WATCHING:
            self._back_off(seconds)

    def _back_off(self, seconds: float) -> None:
        self._enter(AcceptorState.BACKING_OFF)
        self._retry = self._loop.call_later(seconds, self._watch)

    def _pause(self, exc: OSError) -> None:
        """Pause, because the socket stays readable: going on at once would spin (116,000 exceptions a second)."""
        if self._state is AcceptorState.CLOSED:
            return
        self._enter(AcceptorState.PAUSED)
        self._retry = self._loop.call_later(PAUSE, self.resume)
        self._report(reason_of(exc))

    def _report(self, reason: str, is_event: bool = True) -> None:
        self._pause_reason = reason
        if is_event and not self._reported:
            self._reported = True
            self._emit(AcceptPaused(describe(self._sock), reason))

    def _break(self, exc: OSError) -> None:
        self.close()
        self._emit(ListenerBroken(describe(self._sock), reason_of(exc)))
        if self._on_broken is not None:
            self._on_broken(exc)

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self, limit: int, force: bool = False) -> RetryAfter | Blocked | None:
        """Accept up to `limit` connections. Return the admission's answer if it ended the batch."""
        state, accept_descriptor = self._state, self._accept_descriptor
        until = math.inf if force else self._loop.time() + BATCH_SECONDS
        for _ in range(limit):
            answer = self._admission.try_acquire(force)
            if answer is not GRANTED:
                return answer
            try:
                if accept_descriptor is None:
                    connection, address = self._sock.accept()
                else:
                    fd, address = accept_descriptor()
                    connection = socket.socket(*self._kind, fileno=fd)
            except OSError as exc:
                self._admission.cancel()
                kind = classify(exc.errno)
                # At the end a sibling may have shut the socket down, because the accept queue was empty.
                if (force and kind is AcceptError.LISTENER) or self._ends_batch(kind, exc):
                    return None
                continue
            self._hand_over(connection, address)
            # A callback may have closed this acceptor; the rest of the queue is for other processes then.
            if self._state is not state or self._loop.time() > until:
                return None
        return None

    def _ends_batch(self, kind: AcceptError, exc: OSError) -> bool:
        if kind is _EMPTY:
            # A shortage is over.
            self._reported = False
            return True
        match kind:
            case AcceptError.CONNECTION:
                self._emit(AcceptSkipped(describe(self._sock), reason_of(exc)))
                return False
            case AcceptError.CAPACITY:
                self._pause(exc)
            case AcceptError.LISTENER:
                self._break(exc)
        return True

    def _hand_over(self, connection: socket.socket, address: object) -> None:
        try:
            connection.setblocking(False)
        except OSError as exc:
            connection.close()
            self._admission.cancel()
            self._emit(AcceptSkipped(describe(self._sock), reason_of(exc)))
            return
        try:
            self._callback(connection, address)
        except OutOfResourcesError as exc:
            connection.close()
            self._pause(exc)
        except Exception as exc:
            connection.close()
            message = f"the callback for a connection accepted on {describe(self._sock)} failed"
            self._loop.call_exception_handler({"message": message, "exception": exc})
