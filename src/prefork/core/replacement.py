"""Workers that are well are replaced, one slot at a time: all of them by a reload, one that has served enough by
recycling. Each successor is forked, proves that it is ready, and only then its predecessor drains.

The first successor that fails ends it, and keeps what runs. That the server stops meanwhile is the roster's business.
"""

from __future__ import annotations

from ..events import RecycleFailed, Recycling, Reloaded, ReloadFailed, Reloading
from .facts import Command, EmitEvent
from .fleet import Fleet
from .restart_policy import History
from .worker_state import Purpose, RollingRestart, Slot, Timing, Worker

#: Seconds after a worker's successor has failed until recycling is tried again.
RECYCLE_RETRY = 30.0
#: Seconds between two that are recycled: limits that are too low for the load shall cost forks, not the service.
RECYCLE_INTERVAL = 1.0


class Replacement:
    """One thing at a time: `rolling` is what is under way."""

    def __init__(self, fleet: Fleet) -> None:
        self.rolling: RollingRestart | None = None
        self._fleet = fleet
        self._recycle_at = 0.0

    def generations(self) -> set[int]:
        """Those that a worker may yet be forked of."""
        coming = {self._fleet.generation} if self._reloads() else set()
        return {self._fleet.proven, *(slot.generation for slot in self._fleet.slots)} | coming

    def next_due(self) -> float | None:
        """When `recycle` will have something to do."""
        return self._recycle_at if self.rolling is None and self._spent_slot() is not None else None

    def is_successor(self, worker: Worker) -> bool:
        """Whether it is to prove itself."""
        return self.rolling is not None and self.rolling.successor == worker.number

    def successor_of(self, slot: Slot) -> Worker | None:
        """The one that is to take the slot over."""
        if self.rolling is None or self.rolling.successor is None:
            return None
        worker = self._fleet.workers[self.rolling.successor]
        return worker if worker.slot == slot.number else None

    def call_off(self) -> None:
        """Nothing is replaced any more."""
        self.rolling = None

    # --- how it begins ------------------------------------------------------------------------------------------------

    def reload(self, by: str, timing: Timing) -> list[Command]:
        """Replace every worker; after what is under way, if anything is."""
        if self.rolling is not None:
            self.rolling.again = (by, timing)
            return []
        self._fleet.begin_generation(timing)
        self.rolling = RollingRestart(Purpose.RELOAD, [slot.number for slot in self._fleet.slots])
        return [EmitEvent(Reloading(by, self._fleet.generation)), *self._next_successor()]

    def recycle(self, now: float) -> list[Command]:
        """Replace the first worker that has served enough, if it is time."""
        slot = self._spent_slot()
        if slot is None or self.rolling is not None or now < self._recycle_at:
            return []
        worker = self._fleet.occupant(slot)
        assert worker is not None
        self.rolling = RollingRestart(Purpose.RECYCLE, [slot.number])
        return [EmitEvent(Recycling(slot.number, worker.pid, worker.spent)), *self._next_successor()]

    # --- how it goes on -----------------------------------------------------------------------------------------------

    def successor_ready(self, worker: Worker, now: float) -> list[Command]:
        """It has the slot, and its predecessor drains."""
        assert self.rolling is not None
        self.rolling.successor = None
        slot = self._fleet.slots[worker.slot]
        predecessor = slot.occupant
        slot.occupant = worker.number
        slot.generation = worker.generation
        slot.due = None
        slot.history = History(forks=slot.history.forks)
        if self.rolling.purpose is Purpose.RECYCLE:
            self._recycle_at = now + RECYCLE_INTERVAL
        if predecessor is None:
            return self._next_successor()
        self.rolling.retired.add(predecessor)
        return [*self._fleet.retire(predecessor, now), *self._next_successor()]

    def successor_failed(self, worker: Worker, reason: str, now: float) -> list[Command]:
        """What does not boot never replaces what runs; the rest of it is off."""
        assert self.rolling is not None
        rolling, self.rolling = self.rolling, None
        for number in (worker.slot, *rolling.left):
            slot = self._fleet.slots[number] if number < len(self._fleet.slots) else None
            if slot is not None and slot.occupant is None and slot.due is None:
                # Nobody was there, or has died meanwhile: one of those that were, when it was due.
                slot.due = max(now, rolling.due_before) if number == worker.slot else now
        if rolling.purpose is Purpose.RELOAD:
            failed: list[Command] = [EmitEvent(ReloadFailed(worker.slot, reason))]
        else:
            self._recycle_at = now + RECYCLE_RETRY
            failed = [EmitEvent(RecycleFailed(worker.slot, reason, RECYCLE_RETRY))]
        return failed + (self.reload(*rolling.again) if rolling.again else [])

    def slot_added(self, slot: Slot, now: float) -> list[Command]:
        """There is one more. A reload that is under way gives it its worker, which is a new one."""
        if not self._reloads() or self.rolling is None:
            slot.due = now
            return []
        self.rolling.left.append(slot.number)
        return self._next_successor() if self.rolling.successor is None else []

    def slot_removed(self, slot: Slot, now: float) -> list[Command]:
        """There are fewer slots: a successor for this one is not wanted any more."""
        if self.rolling is not None:
            # The slot of this number that may come again is another one.
            self.rolling.left = [number for number in self.rolling.left if number != slot.number]
        successor = self.successor_of(slot)
        if successor is None or self.rolling is None:
            return []
        self.rolling.successor = None
        return [*self._fleet.retire(successor.number, now), *self._next_successor()]

    def retired_one_stopped(self) -> list[Command]:
        """One that was replaced accepts no more, or is gone: where every slot has its new worker, the last ends it."""
        rolling = self.rolling
        if rolling is None or rolling.left or rolling.successor is not None:
            return []
        workers = self._fleet.workers
        if any(each in workers and workers[each].accepting for each in rolling.retired):
            return []
        self.rolling = None
        notes: list[Command] = []
        if rolling.purpose is Purpose.RELOAD:
            self._fleet.proven = self._fleet.generation
            notes.append(EmitEvent(Reloaded(self._fleet.generation)))
        return notes + (self.reload(*rolling.again) if rolling.again else [])

    def _next_successor(self) -> list[Command]:
        """Fork for the next slot that needs it, also where nobody is at the moment: what is new has to prove itself."""
        rolling = self.rolling
        assert rolling is not None
        while rolling.left:
            number = rolling.left.pop(0)
            if number >= len(self._fleet.slots):
                continue
            slot = self._fleet.slots[number]
            if slot.occupant is None and rolling.purpose is Purpose.RECYCLE:
                continue
            rolling.due_before = slot.due or 0.0
            slot.due = None
            worker, commands = self._fleet.make(number, self._fleet.generation if self._reloads() else slot.generation)
            rolling.successor = worker.number
            return commands
        return self.retired_one_stopped()

    def _reloads(self) -> bool:
        return self.rolling is not None and self.rolling.purpose is Purpose.RELOAD

    def _spent_slot(self) -> Slot | None:
        """The slot of the worker that has wanted to be recycled for the longest time."""
        spent = [
            (worker.spent_since, slot.number)
            for slot in self._fleet.slots
            if (worker := self._fleet.occupant(slot)) is not None and worker.spent and self._fleet.is_ready(slot)
        ]
        return self._fleet.slots[min(spent)[1]] if spent else None
