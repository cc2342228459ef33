"""Admission control: whether a server may accept one more connection, and the count of those that it has.

See worker/fleet_admission.py for the limits of a whole fleet. Sockets and timers do not belong here.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from ..config import Limits
from ..core.account import CloseReason
from ..core.peers import peer_key
from ..core.token_bucket import TokenBucket
from .handshake_throttle import HandshakeThrottle


class Permit(enum.Enum):
    """The right to accept one connection: a unit of every limit, reserved until `commit` or `cancel`."""

    GRANTED = enum.auto()


#: Returned for each connection; an attribute of an enum class costs twice as much as a global.
GRANTED: Final = Permit.GRANTED


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """No permit before `seconds` have passed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """No permit until the admission calls `resume`."""

    reason: str
    is_event: bool = True
    """False: it is logged elsewhere."""


Answer = Literal[Permit.GRANTED] | RetryAfter | Blocked


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection that was accepted must be closed at once. Its permit is released already."""

    reason: str
    counted: CloseReason = CloseReason.MAX_CONNECTIONS
    """What the account has it as."""


#: The key of the peer that a connection counts for; None: for none.
Peer = bytes | None


class Admission(Protocol):
    """Counts connections against the limits of one server or of a fleet."""

    def try_acquire(self, force: bool = False) -> Answer:
        """Return Permit.GRANTED if a connection may be accepted now.

        `force`: grant in any case, because nothing accepts after this process; `commit` then refuses what is beyond a
        limit.
        """

    def cancel(self) -> None:
        """Release a permit that was not used."""

    def commit(self, address: object) -> Peer | Refusal:
        """Turn a permit into an open connection from `address`. Return the peer that it counts for, or a Refusal."""

    def claim(self, address: object) -> Peer | Refusal:
        """Count a connection that counts for no peer for `address`, which its proxy has told; answer as `commit`.

        None, as of a health check by the proxy: it goes on to count for none, because all of them would for one.
        """

    def release(self, peer: Peer) -> None:
        """Report that an open connection of `peer` has ended."""

    def on_capacity(self, resume: Callable[[], None]) -> None:
        """Set what to call when there may be capacity again that no `release` of this server has made."""

    def close(self) -> None:
        """Stop calling `resume`, for good."""


#: Reasons of refusals and pauses, as events show them.
SUSPENDED = "suspended (prefork resume)"
UNTRUSTED = "it is none of the trusted proxies (--proxy-from)"
AT_LIMIT = "connection limit reached (--max-connections)"
AT_PEER_LIMIT = "per-address connection limit reached (--max-connections-per-ip)"
PEERS_FULL = "the table of addresses is full (--max-connections-per-ip)"
OUT_OF_DESCRIPTORS = "nearly all descriptors of the process are in use (ulimit -n)"
HANDSHAKES_FULL = "TLS handshake queue is full (--max-handshakes)"


class HandshakeAdmission:
    """Wraps an admission: no permit while the queue of TLS handshakes is full."""

    def __init__(self, admission: Admission, handshakes: HandshakeThrottle) -> None:
        self._admission = admission
        self._handshakes = handshakes
        self.cancel = admission.cancel
        self.commit = admission.commit
        self.claim = admission.claim
        self.release = admission.release
        self.close = admission.close

    def try_acquire(self, force: bool = False) -> Answer:
        if self._handshakes.is_full() and not force:
            return Blocked(HANDSHAKES_FULL)
        return self._admission.try_acquire(force)

    def on_capacity(self, resume: Callable[[], None]) -> None:
        self._handshakes.on_capacity = resume
        self._admission.on_capacity(resume)


class Unlimited:
    """The admission of a plain accept handler: no limits."""

    def try_acquire(self, force: bool = False) -> Answer:
        return GRANTED

    def commit(self, address: object) -> Peer | Refusal:
        return None

    def claim(self, address: object) -> Peer | Refusal:
        return None

    def cancel(self) -> None: ...
    def release(self, peer: Peer) -> None: ...
    def on_capacity(self, resume: Callable[[], None]) -> None: ...
    def close(self) -> None: ...


class LocalAdmission(Unlimited):
    """The admission of a server without siblings: its own limits only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._refuses = limits.at_limit == "refuse"
        self._bucket = TokenBucket()
        self._open = 0
        """Open connections and reserved permits."""
        self._peers: Counter[bytes] = Counter()

    def try_acquire(self, force: bool = False) -> Answer:
        limits = self._limits
        self._refuses = self._refuses or force
        full = limits.max_connections is not None and self._open >= limits.max_connections
        if full and not self._refuses:
            return Blocked(AT_LIMIT)
        if limits.accept_rate is not None and not force:
            seconds = self._bucket.take(limits.accept_rate, time.monotonic())
            if seconds:
                return RetryAfter(seconds)
        self._open += 1
        return GRANTED

    def cancel(self) -> None:
        self._open -= 1
        self._bucket.refund()

    def commit(self, address: object) -> Peer | Refusal:
        limits = self._limits
        if limits.max_connections is not None and self._open > limits.max_connections and self._refuses:
            self._open -= 1
            return Refusal(AT_LIMIT)
        return None if limits.max_connections_per_ip is None else self.claim(address)

    def claim(self, address: object) -> Peer | Refusal:
        limit = self._limits.max_connections_per_ip
        peer = None if limit is None else peer_key(address)
        if limit is not None and peer is not None:
            if self._peers[peer] >= limit:
                self._open -= 1
                return Refusal(AT_PEER_LIMIT, CloseReason.MAX_CONNECTIONS_PER_IP)
            self._peers[peer] += 1
        return peer

    def release(self, peer: Peer) -> None:
        self._open -= 1
        if peer is not None and peer in self._peers:
            self._peers[peer] -= 1
            if self._peers[peer] <= 0:
                del self._peers[peer]
