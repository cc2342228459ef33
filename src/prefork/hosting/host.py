"""The host: what one worker knows of the program that it runs. Any thread may call it.

It owns the stage, the connections that the program accepted by itself, and the loops that serve. What a call of the
program leads to is in `socket_level.py` and `loop_level.py`, the end in `draining.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from ..core.account import Account, CloseReason, Handshake
from ..core.messages import ListeningMessage, UnableMessage, encode
from ..errors import ExitCode
from ..system.held_sockets import held_sockets
from ..system.scoreboard import ACCOUNT_AT, Row, WorkerStat
from ..system.sockets import inode
from ..worker.context import WorkerContext
from ..worker.main import send
from .claims import Claims
from .stage import Stage

if TYPE_CHECKING:
    import asyncio

    from ..worker.heartbeat import Heartbeat


class Serving(Protocol):
    """What serves in one loop of the program: see `serving.py`."""

    @property
    def shares(self) -> bool:
        """Whether it is the one that siblings pass connections to."""

    def connections(self) -> int: ...
    def descriptors(self) -> list[int]: ...
    def stop_accepting(self) -> None: ...
    def abort(self) -> None: ...


class LockedRow(Row):
    """A worker's row that several threads write: the loops of a program, and those that accept by themselves."""

    __slots__ = ("_lock",)

    def __init__(self, row: Row) -> None:
        super().__init__(row.number, row._cells, row.start, row._buckets)
        self._lock = threading.Lock()

    def reserve(self, more: int) -> None:
        with self._lock:
            super().reserve(more)

    def accepted(self, assigned: int) -> None:
        with self._lock:
            super().accepted(assigned)

    def account(self) -> Account:
        return _LockedAccount(self._cells, self.start + ACCOUNT_AT, self._lock)


class _LockedAccount(Account):
    """An account in which several threads count."""

    __slots__ = ("_lock",)

    def __init__(self, cells: Any, start: int, lock: threading.Lock) -> None:
        super().__init__(cells, start)
        self._lock = lock

    def closed(self, reason: CloseReason, seconds: float | None = None, silent: bool = False) -> None:
        with self._lock:
            super().closed(reason, seconds, silent)

    def handler_failed(self) -> None:
        with self._lock:
            super().handler_failed()

    def handshake(self, outcome: Handshake, seconds: float) -> None:
        with self._lock:
            super().handshake(outcome, seconds)

    def transferred(self, received: int, sent: int) -> None:
        with self._lock:
            super().transferred(received, sent)


class Host:
    """One for each worker; made before the program runs."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.row = LockedRow(context.row)
        self._account = self.row.account()
        self.stage = Stage.SERVING
        settings = context.config.settings
        held = held_sockets(context.config.listeners, context.asked)
        self.claims = Claims(
            context.fork.channel, held, settings.exclusive, context.fork.slot, self._has_served, self.is_accepting
        )
        self.lock = threading.RLock()
        self.loops: dict[asyncio.AbstractEventLoop, Serving] = {}
        """The loops with servers of ours."""
        self.heartbeat: tuple[asyncio.AbstractEventLoop, Heartbeat] | None = None
        self.loop_handler: object = None
        """What the program has a loop call for SIGTERM, if anything."""
        self.awaited: frozenset[int] = frozenset()
        """Blocked signals that the main thread waits for now; its mask does not show them meanwhile."""
        self._listening: set[int] = set()
        self._connections: dict[int, int] = {}
        """The connections that the program accepted itself: the inode of each, by its descriptor."""
        self.listeners: set[int] = set()
        """Descriptors that the program itself accepts from."""
        os.register_at_fork(after_in_child=self._become_child)

    def _has_served(self) -> bool:
        return self.row[WorkerStat.ACCEPTED] > 0

    def is_accepting(self) -> bool:
        """Return whether the supervisor counts this worker among those that accept: it has all of its servers."""
        return self.row.number in self.context.fork.scoreboard.published()[0]

    def _become_child(self) -> None:
        self.stage = Stage.CHILD

    @property
    def backlog(self) -> int:
        return self.context.config.settings.backlog

    # --- listening ----------------------------------------------------------------------------------------------------

    def listens(self, *sockets: socket.socket) -> None:
        """Report, once for each, that the program listens on held sockets.

        In one message: otherwise the supervisor could take this worker for ready in between, and silence the rest.
        """
        with self.lock:
            new = {inode(sock) for sock in sockets} - self._listening
            if self.stage is Stage.CHILD or not new:
                return
            self._listening |= new
        # The supervisor may be gone; then this process ends anyway.
        with contextlib.suppress(OSError):
            os.write(
                self.context.fork.status.fileno(), b"".join(encode(ListeningMessage(each)) for each in sorted(new))
            )

    @property
    def reads_headers(self) -> bool:
        """Whether connections begin with a PROXY header, which is read before the program has them."""
        return self.context.config.settings.proxy_protocol != "off"

    def refuse_own_accepting(self) -> NoReturn:
        """End this worker: the program accepts by itself, so that it would take the PROXY header for data."""
        send(
            self.context,
            UnableMessage(
                "--proxy-protocol: the program accepts connections by itself, and not by a server of an asyncio loop, "
                "so nothing would read the PROXY header (leave the option out, and have the program read it)"
            ),
        )
        os._exit(ExitCode.SERVICE)

    # --- connections that the program accepts itself ------------------------------------------------------------------

    def track(self, fd: int) -> None:
        """Count a connection that the program has accepted, until its descriptor is closed."""
        with self.lock:
            if self.stage is Stage.CHILD:
                return
            gone = self._connections.pop(fd, None) is not None
            self._connections[fd] = os.fstat(fd).st_ino
        if gone:
            self._count_closed(1)
        self.row.reserve(1)
        self.row.accepted(self.row[WorkerStat.ASSIGNED] + 1)

    def _count_closed(self, connections: int) -> None:
        # Why each has ended, its program knows.
        self.row.reserve(-connections)
        for _ in range(connections):
            self._account.closed(CloseReason.DONE)

    def sweep(self) -> int:
        """Forget the connections whose descriptors are closed, and return the number of those that are left."""
        with self.lock:
            closed = [fd for fd, number in self._connections.items() if not _is_open(fd, number)]
            for fd in closed:
                del self._connections[fd]
            left = len(self._connections)
        if closed:
            self._count_closed(len(closed))
        return left

    def tracked(self) -> list[int]:
        """Return the descriptors of the connections that the program has accepted itself."""
        self.sweep()
        with self.lock:
            return list(self._connections)

    def connections(self) -> int:
        """Return the number of open connections, of both kinds."""
        return self.sweep() + sum(serving.connections() for serving in list(self.loops.values()))


def _is_open(fd: int, number: int) -> bool:
    try:
        return os.fstat(fd).st_ino == number
    except OSError:
        return False
