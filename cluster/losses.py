"""What a lost connection belonged to: the clients' losses beside the balancer's log of the same connections.

Pure: both are read elsewhere.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Seconds by which the client's and the balancer's clock may differ on the beginning of a connection.
APART = 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A client's connection that did not end well. `port` is the client's, `host` the one that answered it, or 0;
    `began` in seconds of the epoch, `age` in seconds."""

    kind: str
    end: str
    port: int
    host: int
    began: float
    age: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A connection in the balancer's log. `port` is the client's, `host` the last one that was tried, or 0; `connected`
    says whether it was reached; `retries` counts the attempts after the first; `how` is the log's word for its end."""

    port: int
    host: int
    connected: bool
    retries: int
    how: str
    began: float


class Owner(enum.StrEnum):
    """What a lost connection belonged to."""

    HOST = "a connection of the host"
    OTHER = "a connection of another host"
    BALANCER = "the balancer reached no host"
    UNKNOWN = "not in the balancer's log"


@dataclass(frozen=True, slots=True)
class Attributed:
    """A loss, what it belonged to, and its passage through the balancer, if there was one."""

    loss: Loss
    owner: Owner
    passage: Passage | None

    def __str__(self) -> str:
        how = f" ({self.passage.how})" if self.passage else ""
        first = f"host {self.loss.host} had answered" if self.loss.host else "unanswered"
        return f"{self.loss.kind}, {self.loss.end} after {self.loss.age:.2f} s, {first}: {self.owner}{how}"


@dataclass(frozen=True, slots=True)
class Event:
    """What was done to a host, and when, in seconds of the epoch."""

    host: int
    began: float
    ended: float

    def meets(self, loss: Loss) -> bool:
        """Return whether the lost connection was open within the event."""
        return loss.began <= self.ended and loss.began + loss.age >= self.began


def attribute(losses: Sequence[Loss], passages: Iterable[Passage], events: Sequence[Event]) -> list[Attributed]:
    """Say of each loss whether it was, within an event, a connection of the event's host.

    The balancer's log decides. If another host has answered before, that contradiction is `OTHER`.
    """
    by_port: dict[int, list[Passage]] = {}
    for each in passages:
        by_port.setdefault(each.port, []).append(each)
    return [_attribute(loss, by_port.get(loss.port, ()), {e.host for e in events if e.meets(loss)}) for loss in losses]


def _attribute(loss: Loss, passages: Sequence[Passage], hosts: set[int]) -> Attributed:
    near = [each for each in passages if abs(each.began - loss.began) <= APART]
    if not near:
        return Attributed(loss, Owner.UNKNOWN, None)
    # A port may be used again within a run.
    passage = min(near, key=lambda each: abs(each.began - loss.began))
    if not passage.connected:
        owner = Owner.BALANCER
    else:
        owner = Owner.HOST if passage.host in hosts and loss.host in (0, passage.host) else Owner.OTHER
    return Attributed(loss, owner, passage)


def in_words(attributed: Sequence[Attributed]) -> str:
    """Return how many losses belonged to what."""
    counts = Counter(each.owner for each in attributed)
    return ", ".join(f"{counts[owner]}: {owner}" for owner in Owner if counts[owner]) or "none"
