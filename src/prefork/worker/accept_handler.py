"""`add_accept_handler`: call a function for each connection that a listening socket accepts, in the running loop.

In a child of `fork_processes` the connections are shared evenly among the children that have the same handlers: by
dispatch, as among the workers of `prefork serve`. What the function does with a connection, and when that ends, is not
known here; so each child gets the same number, whatever it has open.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from ..events import log
from ..net.acceptor import Acceptor
from ..net.admission import Refusal
from ..system.forked_fleet import ForkedFleet, current_fleet
from ..system.scoreboard import WorkerStat
from ..system.sockets import inode
from .dispatch import Dispatcher
from .fleet_admission import FleetAdmission
from .heartbeat import INTERVAL, Heartbeat

Callback = Callable[[socket.socket, Any], object]
#: A tag and the value that tells which handlers a child has are shared as positive numbers of this many bits.
_BITS = 62


def add_accept_handler(sock: socket.socket, callback: Callback) -> Callable[[], None]:
    """Call `callback(connection, address)` for each connection that `sock` accepts, in the running loop.

    At most 8 connections are accepted per readiness event, so that nothing else starves. A connection that failed in
    the queue is skipped. When descriptors run out, accepting pauses, which is logged once. In a child of
    `fork_processes`, connections are shared evenly with the children that have handlers for the same sockets.

    Return a function that stops it; `sock` stays open and the caller's. Raises RuntimeError without a running loop.
    Call-compatible with Tornado's `netutil.add_accept_handler`: connections are non-blocking, and an `accept` that a
    subclass overrides is called.
    """
    fleet = current_fleet()
    if fleet is None:
        return Acceptor(sock, callback).close
    loop = asyncio.get_running_loop()
    shared = _sharing.get(loop)
    if shared is None:
        # Those of loops that are closed are of no use any more.
        for each in [each for each in _sharing if each.is_closed()]:
            del _sharing[each]
        shared = _sharing[loop] = _Sharing(fleet, loop)
    return shared.add(sock, callback)


class _Sharing:
    """The handlers of one loop of a child, and its inbox. It exists while there is a handler."""

    def __init__(self, fleet: ForkedFleet, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._row = fleet.row
        self._handlers: dict[int, Callback] = {}
        """By the inode of the listening socket, which is the same in all children."""
        self._acceptors: dict[int, Acceptor] = {}
        self._admission = FleetAdmission(fleet.scoreboard, self._row, loop, refuses=False, slack=0)
        self._row[WorkerStat.STOPPED] = 0
        self._dispatcher = Dispatcher(
            loop,
            fleet.inboxes,
            fleet.slot,
            self._admission,
            serve=self._adopt,
            back_off=self._back_off,
            queue=lambda: sum(each.queue_length() for each in self._acceptors.values()),
            emit=log,
        )
        self._heartbeat = Heartbeat(loop, self._row, INTERVAL)

    def add(self, sock: socket.socket, callback: Callback) -> Callable[[], None]:
        tag = inode(sock) & ((1 << _BITS) - 1)

        def accepted(connection: socket.socket, address: object) -> None:
            if not self._dispatcher.offer(connection, tag):
                self._serve(connection, address, callback)

        def remove() -> None:
            if self._acceptors.get(tag) is acceptor:
                self._remove(tag)
            else:
                acceptor.close()

        acceptor = Acceptor(sock, accepted, admission=self._admission)
        self._handlers[tag] = callback
        self._acceptors[tag] = acceptor
        self._publish()
        return remove

    def _remove(self, tag: int) -> None:
        self._acceptors.pop(tag).close()
        # Siblings pass nothing more to a child that has other handlers than they have; what they passed is served.
        self._row[WorkerStat.STOPPED] = 1
        self._dispatcher.take_all()
        del self._handlers[tag]
        if self._handlers:
            self._publish()
            self._row[WorkerStat.STOPPED] = 0
            return
        self._dispatcher.stop()
        self._heartbeat.stop()
        self._admission.close()
        _sharing.pop(self._loop, None)

    def _publish(self) -> None:
        """Tell the siblings which handlers there are: connections are passed between children that have the same."""
        self._row[WorkerStat.GENERATION] = hash(tuple(sorted(self._handlers))) & ((1 << _BITS) - 1)

    def _adopt(self, connection: socket.socket, address: object, tag: int) -> None:
        callback = self._handlers.get(tag)
        if callback is None:
            # Removed a moment ago, or a hostile child.
            connection.close()
            self._admission.pass_on()
            return
        self._serve(connection, address, callback)

    def _serve(self, connection: socket.socket, address: object, callback: Callback) -> None:
        peer = self._admission.commit(address)
        if not isinstance(peer, Refusal):
            # When it is closed is not known.
            self._admission.release(peer)
        try:
            callback(connection, address)
        except Exception as exc:
            connection.close()
            message = "the callback for an accepted connection failed"
            self._loop.call_exception_handler({"message": message, "exception": exc})

    def _back_off(self, seconds: float) -> None:
        for acceptor in self._acceptors.values():
            acceptor.back_off(seconds)


_sharing: dict[asyncio.AbstractEventLoop, _Sharing] = {}
