"""Answer what workers ask for over their channels: addresses that a program binds, and leases.

What may be bound is decided in `assembly/program_sockets.py`, the holder of a lease in `core/leases.py`.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from ..core.leases import Claim, LeaseTable
from ..core.readiness import Readiness
from ..core.worker_requests import (
    UNIX,
    Answer,
    BindRequest,
    Granted,
    HeldRequest,
    LeaseRequest,
    Refused,
    decode_request,
    encode_answer,
)
from ..errors import reason_of
from ..system.worker_channel import receive, send
from .generations import C, GenerationSpec, Resources

#: Packets of one worker that are answered at once. One that has sent as many waits for PAUSE seconds.
MAX_PACKETS = 16
PAUSE = 0.02
#: Addresses that could not be bound, of one worker: each is a line in the log. It binds further ones itself.
MAX_REFUSALS = 32
#: The answer to a request for an address that the worker is to bind itself.
_ITS_OWN = Refused(0, "")
#: What the holder of a lease reads.
_HELD = b"1"


@dataclass(slots=True)
class Asker:
    """A worker as it asks: the supervisor's end of its channel, and what decides the answers."""

    worker_id: int
    slot: int
    generation: int
    channel: socket.socket
    readiness: Readiness | None
    """None: it serves a service, which binds nothing."""
    refusals: int = 0
    """How often an address could not be bound."""
    paused_until: float = 0.0
    ended: bool = False
    """The worker has closed its end."""


class Requests(Generic[C]):
    """Answers the workers, and owns the leases. `specs` returns the spec of a generation; `may_lease` whether no other
    supervisor's worker may hold a lease."""

    def __init__(
        self, resources: Resources[C], specs: Callable[[int], GenerationSpec[C]], may_lease: Callable[[], bool]
    ) -> None:
        self._resources = resources
        self._specs = specs
        self._may_lease = may_lease
        self._leases = LeaseTable()
        self._sockets: dict[int, socket.socket] = {}
        """Of each claim, by its key: it is written to when the worker holds the lease, and ends with the claim."""
        self._told: set[int] = set()
        """The keys of the claims whose workers know that they hold the lease."""
        self._claims: dict[int, Claim] = {}
        self._keys = itertools.count(1)

    # --- one worker's packets -----------------------------------------------------------------------------------------

    def serve(self, asker: Asker, now: float) -> None:
        """Answer the packets that wait in one worker's channel."""
        for _ in range(MAX_PACKETS):
            try:
                received = receive(asker.channel)
            except (EOFError, ConnectionError):
                asker.ended = True
                return
            except ValueError:
                continue
            except OSError:
                # No memory is free.
                break
            if received is None:
                return
            self._answer(asker, received, now)
        asker.paused_until = now + PAUSE

    def _answer(self, asker: Asker, packet: bytes, now: float) -> None:
        try:
            request, number = decode_request(packet)
        except ValueError:
            return
        sock: socket.socket | None = None
        answer: Answer
        match request:
            case LeaseRequest():
                self._claim(asker, request.name, number)
                return
            case BindRequest():
                sock, answer = self._bind(asker, request, now)
            case HeldRequest():
                answer = Granted() if self._resources.holds_path(request.path) else _ITS_OWN
        self._send(asker, answer, number, sock)

    def _send(self, asker: Asker, answer: Answer, number: int, sock: socket.socket | None = None) -> bool:
        # A worker that reads no answers gets none: its call fails after its own timeout.
        return send(asker.channel, encode_answer(answer, number), None if sock is None else sock.fileno())

    def _bind(self, asker: Asker, request: BindRequest, now: float) -> tuple[socket.socket | None, Answer]:
        if asker.readiness is None:
            return None, _ITS_OWN
        spec = self._specs(asker.generation)
        if asker.slot and self._resources.is_exclusive(spec, request):
            return None, Granted(silent=True)
        found = self._resources.find_for_program(spec, request)
        if found is None:
            any_port = request.family != UNIX and request.port == 0
            if asker.refusals >= MAX_REFUSALS or not asker.readiness.may_ask(any_port, now):
                return None, _ITS_OWN
            found = self._resources.bind_for_program(spec, request)
            asker.refusals += isinstance(found, Refused)
        return (None, found) if isinstance(found, Refused) else (found, Granted())

    # --- leases -------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        return {each.fileno(): select.POLLIN for each in self._sockets.values()}

    def next_due(self, now: float) -> float | None:
        return None

    def collect(self, ready: set[int]) -> None:
        """End the claims whose workers have given them up, and tell those that hold a lease now."""
        if not ready.isdisjoint(sock.fileno() for sock in self._sockets.values()):
            # Looked at once more, because the number may be that of a claim which has ended since, and be reused.
            self._end_given_up()
        if self._may_lease():
            self._tell()

    def are_held(self) -> bool:
        """Return whether a worker holds a lease."""
        return bool(self._told)

    def forget(self, worker_id: int) -> None:
        """End the claims of a worker that has died, whatever else has its sockets."""
        for claim in self._leases.claims_of(worker_id):
            self._end(claim.key)

    def close(self) -> None:
        for key in list(self._claims):
            self._end(key)

    def _claim(self, asker: Asker, name: str, number: int) -> None:
        refusal = self._leases.refusal(asker.worker_id, name)
        if refusal:
            # What the worker has just given up may not have been looked at yet.
            self._end_given_up()
            refusal = self._leases.refusal(asker.worker_id, name)
        try:
            own, other = (None, None) if refusal else socket.socketpair()
        except OSError as exc:
            own, other, refusal = None, None, reason_of(exc)
        if own is None or other is None:
            self._send(asker, Refused(errno.EAGAIN, refusal), number)
            return
        with other:
            if not self._send(asker, Granted(), number, other):
                own.close()
                return
        claim = Claim(next(self._keys), asker.worker_id, name)
        self._claims[claim.key], self._sockets[claim.key] = claim, own
        self._leases.add(claim)
        if self._may_lease():
            self._tell()

    def _end_given_up(self) -> None:
        """End the claims whose sockets are readable, whatever they say: a worker has only to close its own."""
        poll = select.poll()
        for sock in self._sockets.values():
            poll.register(sock, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(0)}
        for key in [key for key, sock in self._sockets.items() if sock.fileno() in ready]:
            self._end(key)

    def _end(self, key: int) -> None:
        self._sockets.pop(key).close()
        self._told.discard(key)
        self._leases.remove(self._claims.pop(key))

    def _tell(self) -> None:
        for claim in list(self._claims.values()):
            if claim.key not in self._told and self._leases.holder(claim.name) == claim:
                self._told.add(claim.key)
                if not send(self._sockets[claim.key], _HELD):
                    self._end(claim.key)

    def sockets(self) -> list[socket.socket]:
        """Return what no worker may inherit: a lease would outlive its holder."""
        return list(self._sockets.values())
