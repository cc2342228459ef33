"""Which listening sockets a worker accepts from when each worker has its own (--reuse-port).

The sockets of one address are a reuseport group: the kernel puts each connection into the queue of one of them, and
does not know whether its worker is dead, hung or busy. So a worker accepts from its own sockets, which change with the
number of workers, and steals: it also accepts from a sibling's socket while connections wait there.

Without --reuse-port there is nothing to do here.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Iterator, Sequence

from ..net.base_server import BaseServer

#: Seconds between checks. A sibling's socket on which connections wait in two checks in a row is stolen from.
INTERVAL = 0.1
#: Checks for which a worker accepts from a sibling's socket before it leaves it to the sibling again.
STEALING_CHECKS = 10


def own_sockets(slot: int, slots: int, sockets: int) -> frozenset[int]:
    """Return the numbers of the sockets, of `sockets` in all, that the worker in `slot` of `slots` accepts from.

    Sockets outlive workers, so there may be more or fewer of them. With fewer workers, some workers have several
    sockets; with more, some sockets are shared. Every socket has a worker, otherwise connections in its queue would
    never be accepted.
    """
    if slots >= sockets:
        return frozenset({slot % sockets})
    return frozenset(number for number in range(sockets) if number % slots == slot % slots)


class ReuseportSockets:
    """Keeps `server` accepting from the right sockets of `endpoints`, from its construction until `stop`.

    `slots` returns the current number of workers. An endpoint with one socket is shared: every worker accepts from it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: BaseServer,
        endpoints: Sequence[Sequence[socket.socket]],
        slot: int,
        slots: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._server = server
        self._groups = [sockets for sockets in endpoints if len(sockets) > 1]
        self._slot = slot
        self._slots = slots
        self._own: set[socket.socket] = set()
        self._stolen: dict[socket.socket, int] = {}
        """Siblings' sockets that this worker accepts from, with the number of checks left."""
        self._waiting: set[int] = set()
        """Descriptors of siblings' sockets on which connections waited in the last check."""
        self._timer: asyncio.TimerHandle | None = None
        for sockets in endpoints:
            if len(sockets) == 1:
                server.add_socket(sockets[0])
        self._update_own()
        self._check()

    def stop(self) -> None:
        """Stop checking; the server goes on accepting from the same sockets."""
        if self._timer is not None:
            self._timer.cancel()

    def accept_from_all(self) -> None:
        """Accept from every sibling's sockets too, because no sibling will."""
        for sock in self._others():
            self._server.add_socket(sock)

    def _check(self) -> None:
        if not self._groups:
            return
        # The kernel may be unable to watch one more socket (epoll_ctl(2), ENOSPC); the next check tries again.
        with contextlib.suppress(OSError):
            self._update_own()
            self._steal()
        self._timer = self._loop.call_later(INTERVAL, self._check)

    def _update_own(self) -> None:
        slots = max(1, self._slots())
        own = {group[index] for group in self._groups for index in own_sockets(self._slot, slots, len(group))}
        for sock in own - self._own:
            if self._stolen.pop(sock, None) is None:
                self._server.add_socket(sock)
            self._own.add(sock)
        for sock in self._own - own:
            self._server.remove_socket(sock)
            self._own.discard(sock)

    def _steal(self) -> None:
        for sock, checks_left in list(self._stolen.items()):
            self._stolen[sock] = checks_left - 1
            if not checks_left:
                del self._stolen[sock]
                self._server.remove_socket(sock)
        others = {sock.fileno(): sock for sock in self._others()}
        waiting = _readable(others)
        for fd in waiting & self._waiting:
            self._server.add_socket(others[fd])
            self._stolen[others[fd]] = STEALING_CHECKS
        self._waiting = waiting

    def _others(self) -> Iterator[socket.socket]:
        return (sock for group in self._groups for sock in group if sock not in self._own and sock not in self._stolen)


def _readable(descriptors: dict[int, socket.socket]) -> set[int]:
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(0)}
