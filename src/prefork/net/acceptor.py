"""Accepting from one listening socket on the running loop, in bounded batches.

Hands over every connection it accepted, and makes nothing of it: streams, tasks and limits are its callers' business.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
from collections.abc import Callable

from ..core.accepting import Verdict, judge
from ..events import AcceptPaused, AcceptSkipped, Emit, ListenerBroken, log
from ..system.sockets import describe

#: Connections accepted per readiness event. More would let one worker hoard a burst that others could share, and keep
#: the loop from its other work; fewer costs a turn of the loop more often.
BATCH = 8
#: Seconds that accepting rests when there is no room, unless a connection closes before.
PAUSE = 0.5

Accepted = Callable[[socket.socket, object], object]


class State(enum.Enum):
    """The life of an acceptor."""

    ACCEPTING = enum.auto()
    PAUSED = enum.auto()
    """No room. Rests until `resume()` or a moment has passed."""
    CLOSED = enum.auto()


class Acceptor:
    """Calls `callback(connection, address)` for each connection that `sock` has, from construction until `close()`.

    The connection is non-blocking, close-on-exec, and the callback's from then on; if the callback raises, it is
    closed, the failure is given to the loop's exception handler, and accepting goes on. `sock` stays its owner's: it is
    made non-blocking, and never closed. `on_broken` is called once if the listening socket itself has failed; accepting
    has stopped then.
    """

    def __init__(
        self,
        sock: socket.socket,
        callback: Accepted,
        *,
        batch: int = BATCH,
        emit: Emit = log,
        on_broken: Callable[[OSError], object] | None = None,
    ) -> None:
        # A listener that blocks would stop the worker whenever a sibling takes the connection first. The flag belongs
        # to the open file description, so it is set for all processes that share the socket.
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._callback = callback
        self._batch = batch
        self._emit = emit
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._state = State.ACCEPTING
        self._retry: asyncio.TimerHandle | None = None
        self._reported = False
        self._loop.add_reader(self._fd, self._ready)

    def resume(self) -> None:
        """There may be room again: go on at once. Does nothing unless accepting rests."""
        if self._state is State.PAUSED:
            self._state = State.ACCEPTING
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._loop.add_reader(self._fd, self._ready)

    def close(self) -> None:
        """Stop accepting. May be called again; the socket stays open, and its queue is for whoever else holds it."""
        if self._state is State.ACCEPTING:
            self._loop.remove_reader(self._fd)
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._state = State.CLOSED

    def accept_waiting(self, most: int) -> None:
        """Accept now what waits in the queue, up to `most` connections: the last thing before `close` where nobody else
        will. Does nothing while accepting rests."""
        if self._state is State.ACCEPTING:
            self._accept(most)

    def _ready(self) -> None:
        self._accept(self._batch)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, address = self._sock.accept()
            except OSError as exc:
                verdict = judge(exc.errno)
                if verdict is Verdict.CONNECTION:
                    self._emit(AcceptSkipped(describe(self._sock), _reason(exc)))
                    continue
                if verdict is Verdict.CAPACITY:
                    self._pause(exc)
                elif verdict is Verdict.LISTENER:
                    self._break(exc)
                else:
                    # Nobody waits any more: a shortage is over.
                    self._reported = False
                return
            self._hand_over(connection, address)
            # The callback may have closed us; what is still queued is somebody else's then.
            if self._state is not State.ACCEPTING:
                return

    def _hand_over(self, connection: socket.socket, address: object) -> None:
        try:
            connection.setblocking(False)
            self._callback(connection, address)
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
        self._loop.remove_reader(self._fd)
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


def add_accept_handler(sock: socket.socket, callback: Callable[[socket.socket, object], object]) -> Callable[[], None]:
    """Call `callback(connection, address)` for each connection that `sock` accepts, in the running loop.

    At most 8 are accepted per readiness event, so that nothing else starves; a connection that died in the queue is
    skipped; running out of descriptors makes accepting rest and is logged once. Returns `remove`, which stops it;
    `sock` stays open and the caller's. Raises RuntimeError where no loop runs. Call-compatible with Tornado's
    `netutil.add_accept_handler`, whose connections are non-blocking too.
    """
    return Acceptor(sock, callback).close


def _reason(exc: OSError) -> str:
    return os.strerror(exc.errno).lower() if exc.errno else str(exc)
