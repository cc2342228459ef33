"""Admission control: what a server asks before it accepts a connection, and reports about it afterwards.

A server in a worker asks about the whole fleet (`worker/fleet_admission.py`); one without a supervisor asks
`LocalAdmission`. Sockets and timers do not belong here.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from ..config import Limits
from ..core.peers import peer_key
from ..core.token_bucket import TokenBucket
from .handshake_throttle import HandshakeThrottle

#: The answer: not before somebody calls `resume`.
UNTIL_CAPACITY = math.inf


class Admission(Protocol):
    """Counts connections, against limits and among siblings."""

    why: str
    """The reason of the last UNTIL_ROOM."""

    def ask(self, waiting: Callable[[], int], must: bool = False) -> float | None:
        """May one be taken? None: yes, and its place is reserved, until `nothing` or `took` is called. Else the seconds
        after which to ask again, UNTIL_ROOM for never by itself.

        `waiting` gives how many connections wait, as far as that can be told; `must`: one is taken, and nobody will be
        left to wait any more: beyond a limit `took` refuses.
        """

    def nothing(self) -> None:
        """None was there: the place is free."""

    def missed(self) -> None:
        """After the seconds of `ask` nobody waited any more: others have taken what there was."""

    def took(self, address: object) -> tuple[str, bytes | None]:
        """One was taken, from this address. "" if it may stay, else why it is to be closed at once, and its place is
        free again; and whom it counts for."""

    def ended(self, peer: bytes | None) -> None:
        """One that stayed has ended; it counted for `peer`."""

    def on_room(self, resume: Callable[[], None]) -> None:
        """Call `resume` when there may be room again that no `ended` of this server made."""

    def close(self) -> None:
        """Ask no more."""


#: Why a connection is refused, as events say it.
AT_LIMIT = "as many connections are open as may be (--max-connections)"
AT_DESCRIPTORS = "nearly all descriptors of the process are in use"
AT_PEERS_LIMIT = "its address has as many connections open as it may (--max-connections-per-ip)"
UNCOUNTED = "its address cannot be counted, as the table of addresses is full (--max-connections-per-ip)"


class HandshakeAdmission:
    """A gate that also keeps connections waiting while as many handshakes wait for their turn as may."""

    def __init__(self, gate: Admission, turnstile: HandshakeThrottle) -> None:
        self.why = ""
        self._gate = gate
        self._turnstile = turnstile
        self.nothing = gate.nothing
        self.missed = gate.missed
        self.took = gate.took
        self.ended = gate.ended
        self.close = gate.close

    def ask(self, waiting: Callable[[], int], must: bool = False) -> float | None:
        if self._turnstile.full() and not must:
            self.why = "as many handshakes wait for their turn as may (--max-handshakes)"
            return UNTIL_CAPACITY
        seconds = self._gate.ask(waiting, must)
        self.why = self._gate.why
        return seconds

    def on_room(self, resume: Callable[[], None]) -> None:
        self._turnstile.on_room = resume
        self._gate.on_room(resume)


class LocalAdmission:
    """The gate of a server that has no siblings: its own limits."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.why = AT_LIMIT
        self._limits = limits
        self._refuses = limits.at_limit == "refuse"
        self._clock = clock
        self._bucket = TokenBucket()
        self._open = 0
        self._peers: Counter[bytes] = Counter()

    def ask(self, waiting: Callable[[], int], must: bool = False) -> float | None:
        limits = self._limits
        self._refuses = self._refuses or must
        full = limits.max_connections is not None and self._open >= limits.max_connections
        if full and not self._refuses:
            return UNTIL_CAPACITY
        if limits.accept_rate is not None and not must:
            seconds = self._bucket.take(limits.accept_rate, self._clock())
            if seconds:
                return seconds
        self._open += 1
        return None

    def nothing(self) -> None:
        self._open -= 1
        self._bucket.refund()

    def missed(self) -> None: ...

    def took(self, address: object) -> tuple[str, bytes | None]:
        limits = self._limits
        if limits.max_connections is not None and self._open > limits.max_connections and self._refuses:
            self._open -= 1
            return AT_LIMIT, None
        if limits.max_connections_per_ip is None:
            return "", None
        peer = peer_key(address)
        if peer is not None:
            if self._peers[peer] >= limits.max_connections_per_ip:
                self._open -= 1
                return AT_PEERS_LIMIT, None
            self._peers[peer] += 1
        return "", peer

    def ended(self, peer: bytes | None) -> None:
        self._open -= 1
        if peer is not None and peer in self._peers:
            self._peers[peer] -= 1
            if self._peers[peer] <= 0:
                del self._peers[peer]

    def on_room(self, resume: Callable[[], None]) -> None: ...

    def close(self) -> None: ...
