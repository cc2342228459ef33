"""Report the readiness of all connections of one server, inside any asyncio loop.

A poller knows descriptors and the items to report to. Bytes, tasks and deadlines do not belong here.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import Protocol

from ..config import Limits
from ..implementation import native

#: The bits of an event, as epoll has them.
READ, WRITE = 0x001, 0x004
#: Anything besides plain input: urgent data, an error, a hang-up, the peer's end (PRI, ERR, HUP, RDHUP).
HANGUP_OR_ERROR = 0x002 | 0x008 | 0x010 | 0x2000
#: The connection has failed (ERR); a part of HANGUP_OR_ERROR.
ERROR = 0x008

#: Connections served in one round. Timers, accepting and the service's own tasks run after each round.
MAX_EVENTS = 256


class Pollable(Protocol):
    """A connection. Its method is private because handlers see streams; it is meant for the poller.

    The mask has bits of READ, WRITE and HANGUP_OR_ERROR. A call may be spurious, because descriptor numbers are reused.
    """

    def _on_ready(self, mask: int) -> None: ...


class Corkable(Protocol):
    """An item with output that can wait until the end of the round, when `_flush` is called to send it."""

    def _flush(self) -> None: ...


class Poller(Protocol):
    """The operations that a connection needs of its poller."""

    edge: bool
    """Whether events are reported without being asked for; if not, call `arm` before each wait."""

    def add(self, fd: int, item: Pollable) -> None:
        """Report the events of `fd` to `item` until `remove`. Raises OSError if the kernel has no room for it."""

    def remove(self, fd: int, item: Pollable, duplicated: bool) -> None:
        """Stop reporting. Call it before the close, because a `duplicated` descriptor would go on reporting."""

    def arm(self, fd: int, mask: int) -> None:
        """Report the next event of `mask`."""

    def reserve(self, fd: int) -> None:
        """Reserve the kernel's memory for another registration of `fd`, until `release` or the close.

        Raises OSError if there is none.
        """

    def release(self, fd: int) -> None:
        """Release the reservation, because the other registration is about to be made."""

    def cork(self, item: Corkable) -> None:
        """Call `item._flush()` at the end of this round, or in the loop's next iteration if no round is running."""

    def close(self) -> None:
        """Stop reporting for all descriptors; they stay open."""


class _Rounds:
    """The end of a round, which both pollers share: flush corked items, raise what escaped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._table: dict[int, Pollable] = {}
        self._corked: list[Corkable] = []
        self._in_round = False
        self._escaped: BaseException | None = None

    def _forget(self, fd: int, item: Pollable) -> bool:
        """Return whether `item` had `fd`. If a handler closed the socket itself, another item may have the number."""
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
                item._flush()
            except BaseException as exc:
                self._report(exc)

    def _report(self, exc: BaseException) -> None:
        """Keep one connection's failure from the others of the round, because their edges are not reported again.

        SystemExit and KeyboardInterrupt leave a task's step unchanged. They are raised to the loop after the round.
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


# Edge-triggered nesting. Each connection is registered once, edge-triggered, for everything, in an epoll of our own.
# The loop watches the descriptor of that epoll. One callback of the loop serves all connections that became ready, and
# no system call is spent on changing interest. The outer watch is level-triggered. So what one round leaves is reported
# again in the loop's next iteration, and other callbacks are not starved (epoll(7)).
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

    def remove(self, fd: int, item: Pollable, duplicated: bool) -> None:
        # The kernel removes a descriptor when the last copy of it is closed (epoll(7), question 6).
        if self._forget(fd, item) and duplicated:
            # A handler may have closed the socket itself, and the kernel has removed it then.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def arm(self, fd: int, mask: int) -> None: ...

    def reserve(self, fd: int) -> None:
        # epoll reports errors and hang-ups unasked: once, and to no item.
        self._epoll.register(fd, select.EPOLLET)

    def release(self, fd: int) -> None:
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
            # Looked up for each event, because an earlier one of this round may have closed this connection.
            item = table.get(fd)
            if item is not None:
                try:
                    item._on_ready(mask)
                except BaseException as exc:
                    self._report(exc)
        self._end_round()


class LoopPoller(_Rounds):
    """The poller for platforms without epoll, on `add_reader` and `add_writer`.

    Watches a descriptor only from `arm` to the next event, which makes an edge of the loop's level-triggered report.
    """

    edge = False

    def add(self, fd: int, item: Pollable) -> None:
        self._table[fd] = item

    def remove(self, fd: int, item: Pollable, duplicated: bool) -> None:
        if self._forget(fd, item) and not self._loop.is_closed():
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    def arm(self, fd: int, mask: int) -> None:
        if mask & READ:
            self._loop.add_reader(fd, self._ready, fd, READ)
        if mask & WRITE:
            self._loop.add_writer(fd, self._ready, fd, WRITE)

    # The kernels of these platforms do not count watches.
    def reserve(self, fd: int) -> None: ...
    def release(self, fd: int) -> None: ...

    def close(self) -> None:
        for fd, item in list(self._table.items()):
            self.remove(fd, item, duplicated=True)

    def _ready(self, fd: int, mask: int) -> None:
        stop_watching = self._loop.remove_reader if mask == READ else self._loop.remove_writer
        stop_watching(fd)
        item = self._table.get(fd)
        if item is None:
            return
        self._in_round = True
        try:
            item._on_ready(mask)
        except BaseException as exc:
            self._report(exc)
        self._end_round()


def make_poller(loop: asyncio.AbstractEventLoop, limits: Limits, traffic: memoryview[int]) -> Poller:
    """Return a compiled poller, an EpollPoller if the platform has epoll, otherwise a LoopPoller.

    A compiled one adds what its streams transfer to `traffic`: the bytes received, and the bytes sent.
    """
    if native is not None:
        poller: Poller = native.Poller(loop, limits, traffic)
        return poller
    return EpollPoller(loop) if hasattr(select, "epoll") else LoopPoller(loop)
