"""Leases: decide which worker holds each named lease, and which one is next. Pure: requests and ends go in.

A lease is held by one worker at a time. Descriptors and processes do not belong here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Limits, because a worker may be hostile.
MAX_NAME = 100
MAX_PER_WORKER = 64
MAX_NAMES = 4096


@dataclass(frozen=True, slots=True)
class Claim:
    """One request of one worker for one lease; `key` is unique among all of them."""

    key: int
    worker_id: int
    name: str


def name_error(name: object) -> str:
    """Return what is wrong with the name of a lease; "" if nothing is."""
    if isinstance(name, str) and 0 < len(name) <= MAX_NAME and name.isprintable():
        return ""
    return f"the name of a lease must have 1 to {MAX_NAME} printable characters"


class LeaseTable:
    """The holder of each lease, and the claims that wait for it, in their order."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Claim]] = {}
        """The first claim of each is the holder. A name without claims is not kept."""

    def claims_of(self, worker_id: int) -> list[Claim]:
        return [claim for queue in self._queues.values() for claim in queue if claim.worker_id == worker_id]

    def holder(self, name: str) -> Claim | None:
        queue = self._queues.get(name)
        return queue[0] if queue else None

    def refusal(self, worker_id: int, name: str) -> str:
        """Return why a claim cannot be accepted; "" if it can."""
        if failure := name_error(name):
            return failure
        if len(self.claims_of(worker_id)) >= MAX_PER_WORKER:
            return f"a worker can hold or wait for {MAX_PER_WORKER} leases at once"
        if name not in self._queues and len(self._queues) >= MAX_NAMES:
            return f"there are {MAX_NAMES} leases already"
        return ""

    def add(self, claim: Claim) -> bool:
        """Add a claim; return whether it holds the lease at once."""
        queue = self._queues.setdefault(claim.name, deque())
        queue.append(claim)
        return queue[0] is claim

    def remove(self, claim: Claim) -> Claim | None:
        """Remove a claim that has ended; return the one that holds the lease now because of it."""
        queue = self._queues.get(claim.name)
        if queue is None or claim not in queue:
            return None
        held = queue[0] == claim
        queue.remove(claim)
        if not queue:
            del self._queues[claim.name]
            return None
        return queue[0] if held else None
