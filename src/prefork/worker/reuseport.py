"""Which listening sockets a worker accepts from, where each worker has its own (--reuse-port).

Its own, which change with the number of workers; and a sibling's, while connections wait there and nobody takes them:
the sibling may be dead, hung or busy, and the kernel does not know. Without --reuse-port nothing is to be done here.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from ..core.reuseport import own_sockets

#: Seconds between looks. A connection that waits at two looks in a row is somebody else's to take.
INTERVAL = 0.1
#: Looks until a sibling's lane is given back to it alone.
HELP = 10


class Accepting(Protocol):
    """The server of this worker."""

    def add_socket(self, sock: socket.socket) -> None:
        """Accept from it."""

    def remove_socket(self, sock: socket.socket) -> None:
        """Accept from it no more."""


class Lanes:
    """Keeps `server` accepting from the right ones of `endpoints`, from construction until `stop`. `slots` gives the
    number of workers there are."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Accepting,
        endpoints: Sequence[Sequence[socket.socket]],
        slot: int,
        slots: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._server = server
        self._endpoints = [lanes for lanes in endpoints if len(lanes) > 1]
        self._slot = slot
        self._slots = slots
        self._own: set[socket.socket] = set()
        self._helped: dict[socket.socket, int] = {}
        """Siblings' lanes, with the looks that are left for them."""
        self._waiting: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        for lanes in endpoints:
            if len(lanes) == 1:
                server.add_socket(lanes[0])
        self._take_own()
        self._look()

    def stop(self) -> None:
        """Look no more; what is accepted from is not changed."""
        if self._timer is not None:
            self._timer.cancel()

    def take_all(self) -> None:
        """Accept from everybody's: nobody else will."""
        for lanes in self._endpoints:
            for lane in lanes:
                if lane not in self._own and lane not in self._helped:
                    self._server.add_socket(lane)

    def _look(self) -> None:
        if not self._endpoints:
            return
        # Where the kernel has no room for another watch, the next look tries again.
        with contextlib.suppress(OSError):
            self._take_own()
            self._help()
        self._timer = self._loop.call_later(INTERVAL, self._look)

    def _take_own(self) -> None:
        slots = max(1, self._slots())
        own = {
            lane
            for lanes in self._endpoints
            for number, lane in enumerate(lanes)
            if number in own_sockets(self._slot, slots, len(lanes))
        }
        for lane in own - self._own:
            if self._helped.pop(lane, None) is None:
                self._server.add_socket(lane)
            self._own.add(lane)
        for lane in self._own - own:
            self._server.remove_socket(lane)
            self._own.discard(lane)

    def _help(self) -> None:
        for lane, left in list(self._helped.items()):
            self._helped[lane] = left - 1
            if not left:
                del self._helped[lane]
                self._server.remove_socket(lane)
        others = {
            lane.fileno(): lane
            for lanes in self._endpoints
            for lane in lanes
            if lane not in self._own and lane not in self._helped
        }
        waiting = _readable(others)
        for fd in waiting & self._waiting:
            self._server.add_socket(others[fd])
            self._helped[others[fd]] = HELP
        self._waiting = waiting


def _readable(descriptors: dict[int, socket.socket]) -> set[int]:
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(0)}
