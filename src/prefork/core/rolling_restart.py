"""Rolling restarts: a reload replaces every worker, recycling replaces one.

One slot at a time: a successor is forked, it becomes ready, and only then its predecessor drains. The first successor
that fails ends the restart. The running workers stay, so slots that were already replaced keep the new generation. What
a stop of the server means for it is up to `roster.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..events import (
    OldWorkersGone,
    RecycleFailed,
    Recycling,
    ReloadCalledOff,
    Reloaded,
    ReloadFailed,
    Reloading,
)
from .facts import BeginGeneration, Command, EmitEvent, GenerationFailed, GenerationServes, ReloadRequested
from .fleet import Fleet
from .restart_policy import History
from .states import Slot, Worker, WorkerState

#: Seconds after which a successor that is not ready no longer keeps another reload waiting.
STUCK_AFTER = 5.0
#: Seconds until recycling is tried again after a worker's successor has failed.
RECYCLE_RETRY = 30.0
#: Seconds between two recycled workers: limits that are too low for the load cost forks, but not the service.
RECYCLE_INTERVAL = 1.0


class Purpose(enum.Enum):
    """Why workers are replaced although they are well."""

    RELOAD = enum.auto()
    """All of them, by workers of a new generation."""
    RECYCLE = enum.auto()
    """One for which it was requested (RecycleRequested), by another of its generation."""


@dataclass(slots=True)
class RollingRestart:
    """The state of one rolling restart."""

    purpose: Purpose
    remaining: list[int]
    """Slots that still need a successor."""
    former_due: float = 0.0
    """When the successor's slot was due for a worker anyway; 0 if it was not."""
    successor: int | None = None
    """The id of the worker that has to become ready."""
    retired: set[int] = field(default_factory=set)
    """The ids of the workers that a successor has replaced. The restart ends when the last of them has stopped
    accepting, because every new connection then meets a new worker."""
    queued_reload: ReloadRequested | None = None
    """A reload that was requested meanwhile. Workers that this restart has replaced are replaced again, because the
    code may have changed since."""


class RollingRestarts:
    """Runs one rolling restart at a time, `current`."""

    def __init__(self, fleet: Fleet) -> None:
        self.current: RollingRestart | None = None
        self._fleet = fleet
        self._recycle_at = 0.0
        self._oldest_generation = 0
        """Every worker of a generation before this one has been reported gone."""

    def generations(self) -> set[int]:
        """Return the generations from which a worker may still be forked."""
        coming = set()
        if self._is_reload():
            coming.add(self._fleet.generation)
        if self.current is not None and self.current.queued_reload is not None:
            coming.add(self._fleet.generation + 1)
        return {self._fleet.last_good, *(slot.generation for slot in self._fleet.slots)} | coming

    def next_due(self) -> float | None:
        if self.current is None:
            return None if self._slot_to_recycle() is None else self._recycle_at
        return None if self.current.queued_reload is None else self._stuck_at()

    def is_stuck(self, now: float) -> bool:
        """Return whether a restart waits for a successor that has had STUCK_AFTER seconds to become ready."""
        stuck_at = self._stuck_at()
        return stuck_at is not None and now >= stuck_at

    def _stuck_at(self) -> float | None:
        if self.current is None or self.current.successor is None:
            return None
        worker = self._fleet.workers[self.current.successor]
        return worker.spawned_at + STUCK_AFTER if worker.state is WorkerState.STARTING else None

    def is_successor(self, worker: Worker) -> bool:
        return self.current is not None and self.current.successor == worker.id

    def successor_of(self, slot: Slot) -> Worker | None:
        if self.current is None or self.current.successor is None:
            return None
        worker = self._fleet.workers[self.current.successor]
        return worker if worker.slot == slot.number else None

    def cancel(self) -> None:
        self.current = None

    # --- how a restart begins -----------------------------------------------------------------------------------------

    def reload(self, request: ReloadRequested, now: float) -> list[Command]:
        """Replace every worker; if a restart is under way, after it, or in its place if it is stuck."""
        if self.current is not None:
            self.current.queued_reload = request
            return self.call_off(now)
        self._fleet.begin_generation(request.timing)
        generation = self._fleet.generation
        self.current = RollingRestart(Purpose.RELOAD, [slot.number for slot in self._fleet.slots])
        begin: list[Command] = [BeginGeneration(generation), EmitEvent(Reloading(request.by, generation))]
        return begin + self._next_successor(now)

    def call_off(self, now: float) -> list[Command]:
        """End a stuck restart if a reload waits for it: that one has newer code and settings."""
        current = self.current
        if current is None or current.queued_reload is None or current.successor is None or not self.is_stuck(now):
            return []
        self.current = None
        worker = self._fleet.workers[current.successor]
        self._fill_slots(worker, current, now)
        commands: list[Command] = [EmitEvent(ReloadCalledOff(worker.slot, worker.pid, now - worker.spawned_at))]
        if current.purpose is Purpose.RELOAD:
            commands.append(GenerationFailed(worker.slot, "it was called off by the next reload"))
        return [*commands, *self._fleet.retire(worker.id, now), *self._run_queued(current, now)]

    def recycle(self, now: float) -> list[Command]:
        """Replace the worker that has waited for it the longest, if RECYCLE_INTERVAL has passed since the last one."""
        slot = self._slot_to_recycle()
        if slot is None or self.current is not None or now < self._recycle_at:
            return []
        worker = self._fleet.occupant(slot)
        assert worker is not None  # for mypy
        self.current = RollingRestart(Purpose.RECYCLE, [slot.number])
        return [EmitEvent(Recycling(slot.number, worker.pid, worker.recycle_reason or "")), *self._next_successor(now)]

    # --- how it goes on -----------------------------------------------------------------------------------------------

    def on_successor_ready(self, worker: Worker, now: float) -> list[Command]:
        """Give the slot to the successor, and retire its predecessor."""
        current = self._require()
        current.successor = None
        slot = self._fleet.slots[worker.slot]
        predecessor = slot.occupant
        slot.occupant = worker.id
        slot.generation = worker.generation
        slot.due = None
        slot.history = History(forks=slot.history.forks)
        if current.purpose is Purpose.RECYCLE:
            self._recycle_at = now + RECYCLE_INTERVAL
        if predecessor is None:
            return self._next_successor(now)
        current.retired.add(predecessor)
        return [*self._fleet.retire(predecessor, now), *self._next_successor(now)]

    def on_successor_failed(self, worker: Worker, reason: str, now: float) -> list[Command]:
        """End the restart. Slots that have lost their worker meanwhile get one of their former generation."""
        current, self.current = self._require(), None
        self._fill_slots(worker, current, now)
        failed: list[Command]
        if current.purpose is Purpose.RELOAD:
            failed = [GenerationFailed(worker.slot, reason), EmitEvent(ReloadFailed(worker.slot, reason))]
        else:
            self._recycle_at = now + RECYCLE_RETRY
            failed = [EmitEvent(RecycleFailed(worker.slot, reason, RECYCLE_RETRY))]
        return failed + self._run_queued(current, now)

    def _fill_slots(self, successor: Worker, ended: RollingRestart, now: float) -> None:
        """Have workers forked for the slots that have lost theirs while the restart was to replace them."""
        for number in (successor.slot, *ended.remaining):
            slot = self._fleet.slots[number] if number < len(self._fleet.slots) else None
            if slot is not None and slot.occupant is None and slot.due is None:
                slot.due = max(now, ended.former_due) if number == successor.slot else now

    def on_slot_added(self, slot: Slot, now: float) -> list[Command]:
        """Have a worker forked for a new slot: by the reload under way, if there is one, as it needs the new code."""
        if self.current is None or not self._is_reload():
            slot.due = now
            return []
        self.current.remaining.append(slot.number)
        return self._next_successor(now) if self.current.successor is None else []

    def on_slot_removed(self, slot: Slot, now: float) -> list[Command]:
        if self.current is None:
            return []
        # A slot that gets this number later is another slot.
        self.current.remaining = [number for number in self.current.remaining if number != slot.number]
        successor = self.successor_of(slot)
        if successor is None:
            return []
        self.current.successor = None
        return [*self._fleet.retire(successor.id, now), *self._next_successor(now)]

    def end_if_done(self, now: float) -> list[Command]:
        """End the restart, unless a slot still needs its new worker or a replaced worker still accepts."""
        current = self.current
        if current is None or current.remaining or current.successor is not None:
            return []
        workers = self._fleet.workers
        if any(each in workers and workers[each].accepting for each in current.retired):
            return []
        self.current = None
        done: list[Command] = []
        if current.purpose is Purpose.RELOAD:
            previous, self._fleet.last_good = self._fleet.last_good, self._fleet.generation
            done = [EmitEvent(Reloaded(self._fleet.generation)), GenerationServes(self._fleet.generation, previous)]
        return done + self._run_queued(current, now)

    def report_old_workers_gone(self) -> list[Command]:
        """Report, once after a reload, that no worker of an earlier generation is left."""
        last_good = self._fleet.last_good
        if self._oldest_generation == last_good:
            return []
        if any(worker.generation < last_good for worker in self._fleet.workers.values()):
            return []
        self._oldest_generation = last_good
        return [EmitEvent(OldWorkersGone(last_good))]

    def _next_successor(self, now: float) -> list[Command]:
        """Fork a successor for the next slot. A reload does so even for an empty slot, because new code has to become
        ready once before it is trusted."""
        current = self._require()
        while current.remaining:
            number = current.remaining.pop(0)
            if number >= len(self._fleet.slots):
                continue
            slot = self._fleet.slots[number]
            if slot.occupant is None and current.purpose is Purpose.RECYCLE:
                continue
            current.former_due = slot.due or 0.0
            slot.due = None
            worker, commands = self._fleet.make(
                number, self._fleet.generation if self._is_reload() else slot.generation
            )
            current.successor = worker.id
            return commands
        return self.end_if_done(now)

    def _run_queued(self, ended: RollingRestart, now: float) -> list[Command]:
        return [] if ended.queued_reload is None else self.reload(ended.queued_reload, now)

    def _is_reload(self) -> bool:
        return self.current is not None and self.current.purpose is Purpose.RELOAD

    def _require(self) -> RollingRestart:
        if self.current is None:
            raise RuntimeError("no rolling restart is under way")
        return self.current

    def _slot_to_recycle(self) -> Slot | None:
        waiting = [
            (worker.recycle_since, slot.number)
            for slot in self._fleet.slots
            if self._fleet.is_ready(slot)
            and (worker := self._fleet.occupant(slot)) is not None
            and worker.recycle_reason is not None
        ]
        return self._fleet.slots[min(waiting)[1]] if waiting else None
