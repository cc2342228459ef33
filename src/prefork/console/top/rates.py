"""What has changed between two snapshots, per second.

Pure. A rate is None, and is shown as `-`, where two values cannot be compared: the first reading, a new worker, another
supervisor, a counter that went back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .facts import Snapshot, Worker

#: Two readings closer than this are not compared, in seconds: one connection would look like thousands a second.
MIN_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Flow:
    """Rates of the server or of a worker: connections and bytes a second, and `cpu` as a share of one processor."""

    accepted: float | None = None
    received: float | None = None
    sent: float | None = None
    refused: float | None = None
    failures: float | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of the server, of each worker by slot and pid, and of each reason that a connection ended for."""

    total: Flow = Flow()
    workers: Mapping[tuple[int, int], Flow] = field(default_factory=dict)
    closed: Mapping[str, float | None] = field(default_factory=dict)
    refusals: Mapping[str, float | None] = field(default_factory=dict)

    def of(self, worker: Worker) -> Flow:
        return self.workers.get((worker.slot, worker.pid), _UNKNOWN)


_UNKNOWN = Flow()


def change(before: float | None, after: float | None, seconds: float) -> float | None:
    """Return how much a counter has grown per second; None if that cannot be told."""
    if before is None or after is None or seconds < MIN_SECONDS or after < before:
        return None
    return (after - before) / seconds


def compare(before: Snapshot | None, after: Snapshot) -> Rates:
    """Return the rates between two readings. There is none between two supervisors, whose counts begin anew."""
    if before is None or before.pid != after.pid:
        return Rates()
    seconds = after.at - before.at
    old, new = before.totals, after.totals
    known = {(worker.slot, worker.pid): worker for worker in before.workers}
    workers = {
        key: _flow_of(known[key], worker, seconds)
        for worker in after.workers
        if (key := (worker.slot, worker.pid)) in known
    }
    total = Flow(
        change(old.accepted, new.accepted, seconds),
        change(old.received, new.received, seconds),
        change(old.sent, new.sent, seconds),
        change(old.refused, new.refused, seconds),
        change(old.failures, new.failures, seconds),
        sum_of(flow.cpu for flow in workers.values()),
    )
    return Rates(
        total, workers, _changes(old.closed, new.closed, seconds), _changes(old.refusals, new.refusals, seconds)
    )


def _flow_of(old: Worker, new: Worker, seconds: float) -> Flow:
    return Flow(
        accepted=change(old.accepted, new.accepted, seconds),
        received=change(old.received, new.received, seconds),
        sent=change(old.sent, new.sent, seconds),
        cpu=change(old.cpu, new.cpu, seconds),
    )


def _changes(old: Mapping[str, int], new: Mapping[str, int], seconds: float) -> Mapping[str, float | None]:
    return {name: change(old.get(name, 0), number, seconds) for name, number in new.items()}


def sum_of(values: Iterable[float | None]) -> float | None:
    """Return the sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def happened(before: Snapshot | None, after: Snapshot) -> Sequence[str]:
    """Return in words what an operator has to know of the time between two readings."""
    if before is None:
        return []
    if before.pid != after.pid:
        return [f"supervisor {after.pid} serves, after supervisor {before.pid}"]
    return [line for tell in _TELLERS for line in tell(before, after)]


def _exits(before: Snapshot, after: Snapshot) -> list[str]:
    restarts = {slot.slot: slot.restarts for slot in before.slots}
    return [
        f"worker {slot.slot}: {slot.last_exit or 'replaced'}"
        for slot in after.slots
        if slot.restarts > restarts.get(slot.slot, slot.restarts)
    ]


def _reloads(before: Snapshot, after: Snapshot) -> list[str]:
    last = after.reloads
    if after.reloading and not before.reloading:
        return [f"a reload begins, of generation {after.generation}"]
    if last.failed > before.reloads.failed:
        return [f"reload failed: {last.reason or 'no reason is known'}"]
    return [f"reloaded: generation {after.generation}"] if last.ok > before.reloads.ok else []


def _states(before: Snapshot, after: Snapshot) -> list[str]:
    found = []
    if before.state != after.state:
        now, was = (each.state.replace("_", " ") for each in (after, before))
        found.append(f"the server is {now} (was {was})")
    if before.suspended != after.suspended:
        found.append("suspended: no worker accepts" if after.suspended else "resumed: workers accept again")
    if before.workers_target != after.workers_target:
        found.append(f"scaled from {before.workers_target} to {after.workers_target} workers")
    return found


_TELLERS: Sequence[Callable[[Snapshot, Snapshot], list[str]]] = (_exits, _reloads, _states)
