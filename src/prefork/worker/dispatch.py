"""Pass connections that this worker has accepted to siblings that have fewer, and serve those that siblings pass to it.

`core/dispatch.py` decides which sibling; `system/inboxes.py` moves the descriptors. How a connection is served is not
known here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from ..events import DispatchFailed, Emit
from ..system.inboxes import CAPACITY, Inboxes
from .fleet_admission import FleetAdmission

#: Connections taken from an inbox for each event, as in a batch of accepts.
BATCH = 8
#: Seconds without accepting when a sibling that has less can take no more. It has the queue to itself meanwhile, once
#: it gets a CPU.
BACK_OFF = 0.001
#: Seconds between looks for connections that wait for another worker: in two of them in a row, and they are taken.
RESCUE_INTERVAL = 0.25
#: Seconds between looks whether this worker may serve what is in its inbox.
OPEN_INTERVAL = 0.02


class Dispatcher:
    """The inbox of one worker, in `slot`, from its construction until `stop`.

    `serve` gets each connection that arrived, its address and its tag, and owns it. `back_off` stops accepting for a
    number of seconds; `queue` returns the number of connections that wait to be accepted. Nothing is taken before
    `may_take` is true: the inbox is that of the predecessor too, and a program starts its servers one by one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inboxes: Inboxes,
        slot: int,
        admission: FleetAdmission,
        serve: Callable[[socket.socket, object, int], object],
        back_off: Callable[[float], object],
        queue: Callable[[], int],
        emit: Emit,
        may_take: Callable[[], bool] = lambda: True,
    ) -> None:
        self._loop = loop
        self._inboxes = inboxes
        self._slot = slot
        self._admission = admission
        self._serve = serve
        self._back_off = back_off
        self._queue = queue
        self._emit = emit
        self._may_take = may_take
        self._opened = False
        """It takes from its inbox."""
        self._accepted: dict[int, int] = {}
        """What the workers whose inboxes were not empty at the last look had accepted, by slot."""
        self._crowded: set[int] = set()
        """Slots whose inboxes were full when this worker last wanted to use them."""
        self._watching = False
        self._shut_down = slot >= len(inboxes)
        """There is no inbox, or it is of no use any more."""
        self._open()

    def _open(self) -> None:
        self._opened = self._may_take()
        if self._opened:
            self._watch()
            self._timer = self._loop.call_later(RESCUE_INTERVAL, self._rescue)
        else:
            self._timer = self._loop.call_later(OPEN_INTERVAL, self._open)

    def stop(self) -> None:
        """Serve what is in the inbox, and take nothing more. Call it once siblings can see that this worker stops."""
        self._timer.cancel()
        self._unwatch()
        self.take_all()

    def take_all(self) -> None:
        """Serve what is in the inbox now."""
        if self._opened and self._slot < len(self._inboxes):
            self._take(self._slot, self._inboxes.waiting(self._slot) + BATCH)

    def empty_all(self) -> None:
        """Serve what is in any inbox, because no other worker will."""
        for slot in range(len(self._inboxes)):
            self._take(slot, self._inboxes.waiting(slot))

    def offer(self, sock: socket.socket, tag: int = 0) -> bool:
        """Pass an accepted connection on if a sibling should serve it. Return False if this worker is to.

        `tag` tells the sibling where it was accepted.

        If it is passed on, `sock` is closed here and its permit is released.
        """
        slot = self._admission.choose(self._waiting, self._queue)
        if slot is None or not self._inboxes.send(slot, sock.fileno(), tag):
            return False
        sock.close()
        self._admission.pass_on()
        if not self._admission.accepts(slot):
            # It has looked into its inbox for the last time, perhaps before this connection was there. The lock of the
            # inbox orders the two: it set STOPPED before that look, and this process reads STOPPED after the send.
            self._take(slot, BATCH)
        return True

    def _waiting(self, slot: int) -> int | None:
        """Return the number of connections in the inbox of `slot`; None if it is full."""
        count = self._inboxes.waiting(slot)
        if count < CAPACITY:
            self._crowded.discard(slot)
            return count
        if slot not in self._crowded:
            # Once, until it has taken some: a blocked worker must not keep the others from accepting.
            self._crowded.add(slot)
            self._back_off(BACK_OFF)
        return None

    def _take_own(self) -> None:
        self._take(self._slot, BATCH)

    def _take(self, slot: int, limit: int) -> None:
        for _ in range(limit):
            if not self._admission.has_capacity():
                # A receive without a free descriptor would discard the connection. A sibling takes it.
                self._unwatch()
                return
            sock = None
            # First, so that the connection is counted at any moment: by the inbox, or by the worker.
            self._admission.adopt()
            served = False
            try:
                received = self._inboxes.receive(slot)
                if received is None:
                    return
                sock, tag = received
                # Set by the worker that accepted it; but a hostile one may have cleared it.
                sock.setblocking(False)
                address = sock.getpeername()
            except ValueError as exc:
                self._emit(DispatchFailed(slot, str(exc)))
            except EOFError as exc:
                if slot == self._slot and not self._shut_down:
                    self._shut_down = True
                    self._unwatch()
                    self._emit(DispatchFailed(slot, str(exc)))
                return
            except OSError:
                if sock is None:
                    # No descriptor is free: the connection stays where it is, for a sibling or for later.
                    self._unwatch()
                    return
                # ENOTCONN: the peer has reset the connection meanwhile.
                sock.close()
            else:
                served = True
                self._serve(sock, address, tag)
            finally:
                if not served:
                    self._admission.pass_on()

    def _watch(self) -> None:
        if not self._watching and not self._shut_down:
            self._watching = True
            self._loop.add_reader(self._inboxes.fileno(self._slot), self._take_own)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._inboxes.fileno(self._slot))

    def _rescue(self) -> None:
        """Serve what waits for a worker that is dead, stopped, or has accepted nothing since the last look."""
        self._timer = self._loop.call_later(RESCUE_INTERVAL, self._rescue)
        if not self._admission.has_capacity():
            return
        self._watch()
        responsive = self._admission.responsive_slots()
        before, self._accepted = self._accepted, {}
        for slot in range(len(self._inboxes)):
            if slot == self._slot or not self._inboxes.waiting(slot):
                continue
            accepted = self._admission.accepted_by(slot)
            if slot not in responsive or before.get(slot) == accepted:
                self._take(slot, BATCH)
            else:
                self._accepted[slot] = accepted
