"""Readiness of all connections of one server, inside any asyncio loop.

`EpollPoller` has an epoll of its own: each connection is registered once, edge-triggered, for everything, and the
epoll's own descriptor is watched by the loop. One callback of the loop then serves every connection that became ready,
and no system call is spent on changing interest. The outer watch is level-triggered, so what one round leaves is
reported again in the loop's next turn and other callbacks are not starved (epoll(7)).

`LoopPoller` gives the same through `add_reader` and `add_writer`, where there is no epoll: it watches a descriptor only
from `arm` to the next event, which makes the level-triggered report an edge.

A poller knows descriptors and who is told; bytes, tasks and deadlines are not its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Protocol

#: The bits of an event, as epoll has them.
READ, WRITE = 0x001, 0x004
#: Something besides plain input: urgent data, an error, a hang-up, the peer's end (PRI, ERR, HUP, RDHUP).
HANGUP_OR_ERROR = 0x002 | 0x008 | 0x010 | 0x2000
#: The connection has failed (ERR); one of EXTRA.
ERROR = 0x008

#: Connections served per round. Others (timers, accepting, the service's own tasks) get their turn after each round.
MAX_EVENTS = 256


class Pollable(Protocol):
    """Who is told: a stream."""

    def on_ready(self, mask: int) -> None:
        """Bits of READ, WRITE and EXTRA. May be spurious: a descriptor's number is reused."""


class Corkable(Protocol):
    """Who has something to send that may wait for a moment."""

    def flush(self) -> None:
        """The round is over: send it."""


class Poller(Protocol):
    """What a stream needs of the poller that it is registered with."""

    edge: bool
    """Whether events come by themselves; if not, `arm` must be called before each wait."""

    def add(self, fd: int, item: Pollable) -> None:
        """Report events of `fd` to `item`, from now until `remove`."""

    def remove(self, fd: int, item: Pollable, shared: bool) -> None:
        """Stop that. Must come before the close: a descriptor that is `shared` with a process goes on reporting."""

    def arm(self, fd: int, mask: int) -> None:
        """Report the next event of `mask`."""

    def reserve(self, fd: int) -> None:
        """Hold the place in the kernel that another registration of `fd`, by somebody else, will need, until
        `refund` or the close. Raises OSError where there is none."""

    def refund(self, fd: int) -> None:
        """That registration is made now."""

    def cork(self, item: Corkable) -> None:
        """Call `item.flush()` at the end of this round; outside a round at the loop's next turn."""

    def close(self) -> None:
        """Stop watching everything. Descriptors of connections are not closed."""


class _Rounds:
    """What both pollers share: the end of a round, and what happens there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._table: dict[int, Pollable] = {}
        self._corked: list[Corkable] = []
        self._in_round = False
        self._escaped: BaseException | None = None

    def _forget(self, fd: int, item: Pollable) -> bool:
        """Whether `item` had it. Where a handler has closed the socket itself the number may be another's by now."""
        if self._table.get(fd) is not item:
            return False
        del self._table[fd]
        return True

    def cork(self, item: Corkable) -> None:
        if not self._corked and not self._in_round:
            self._loop.call_soon(self._flush)
        self._corked.append(item)

    def _flush(self) -> None:
        items, self._corked = self._corked, []
        for item in items:
            try:
                item.flush()
            except BaseException as exc:
                self._report(exc)

    def _report(self, exc: BaseException) -> None:
        """One connection's failure must not cost the others their events: an edge is not reported twice.

        SystemExit and KeyboardInterrupt come out of a task's step as they are; they go on to the loop after the round.
        """
        if isinstance(exc, Exception):
            self._loop.call_exception_handler({"message": "event of a connection failed", "exception": exc})
        else:
            self._escaped = exc

    def _end_round(self) -> None:
        self._in_round = False
        if self._corked:
            self._flush()
        if self._escaped is not None:
            escaped, self._escaped = self._escaped, None
            raise escaped


class EpollPoller(_Rounds):
    """The poller for Linux. Owns the epoll descriptor."""

    edge = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._epoll = select.epoll()
        self._mask = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
        loop.add_reader(self._epoll.fileno(), self._round)

    def add(self, fd: int, item: Pollable) -> None:
        self._epoll.register(fd, self._mask)
        self._table[fd] = item

    def remove(self, fd: int, item: Pollable, shared: bool) -> None:
        # What nobody else holds is forgotten by the kernel when it is closed (epoll(7), question 6).
        if self._forget(fd, item) and shared:
            # A handler may have closed the socket behind our back; the kernel has then forgotten it already.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def arm(self, fd: int, mask: int) -> None:
        """Nothing to do: the edge comes by itself."""

    def reserve(self, fd: int) -> None:
        # An error or a hang-up is reported all the same, once, to no item.
        self._epoll.register(fd, select.EPOLLET)

    def refund(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)

    def close(self) -> None:
        self._table.clear()
        if not self._epoll.closed:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _round(self) -> None:
        table = self._table
        self._in_round = True
        for fd, mask in self._epoll.poll(0, MAX_EVENTS):
            # Asked for each event: an earlier one of this round may have closed this connection.
            item = table.get(fd)
            if item is not None:
                try:
                    item.on_ready(mask)
                except BaseException as exc:
                    self._report(exc)
        self._end_round()


class LoopPoller(_Rounds):
    """The poller for platforms without epoll, on nothing but the loop's public calls."""

    edge = False

    def add(self, fd: int, item: Pollable) -> None:
        self._table[fd] = item

    def remove(self, fd: int, item: Pollable, shared: bool) -> None:
        if self._forget(fd, item) and not self._loop.is_closed():
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    def arm(self, fd: int, mask: int) -> None:
        if mask & READ:
            self._loop.add_reader(fd, self._ready, fd, READ)
        if mask & WRITE:
            self._loop.add_writer(fd, self._ready, fd, WRITE)

    def reserve(self, fd: int) -> None:
        """Nothing to do: the watches of these platforms are not counted."""

    def refund(self, fd: int) -> None:
        """The same."""

    def close(self) -> None:
        for fd, item in list(self._table.items()):
            self.remove(fd, item, shared=True)

    def _ready(self, fd: int, mask: int) -> None:
        stop_watching = self._loop.remove_reader if mask == READ else self._loop.remove_writer
        stop_watching(fd)
        item = self._table.get(fd)
        if item is None:
            return
        self._in_round = True
        try:
            item.on_ready(mask)
        except BaseException as exc:
            self._report(exc)
        self._end_round()


def make_poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The best poller of this platform."""
    return EpollPoller(loop) if hasattr(select, "epoll") else LoopPoller(loop)
