"""The slots and the workers in them, and the steps that can be taken with one: make it, retire it, kill it.

Each step keeps the books and gives the commands that it takes. When a step is due is decided in `roster.py` and
`replacement.py`.
"""

from __future__ import annotations

from ..events import DrainTimedOut
from .facts import Command, Drain, EmitEvent, Kill, Spawn
from .worker_state import KillReason, Slot, State, Timing, Worker

#: How much longer than the drain a worker may take before it is killed. It ends itself within seven seconds, in which a
#: lifespan object's `stop()`, tasks, threads and exit handlers have their turn.
STOP_GRACE = 8.0


class Fleet:
    """Who there is. `timing` is that of generation 0; each further generation brings its own."""

    def __init__(self, slots: int, timing: Timing) -> None:
        self.generation = 0
        """The last one that a reload has begun with."""
        self.proven = 0
        """The last one that every slot has had: new slots begin with it."""
        self.slots = [Slot(number) for number in range(slots)]
        self.workers: dict[int, Worker] = {}
        self._timings = {0: timing}
        self._next_worker = 0

    # --- who is who ---------------------------------------------------------------------------------------------------

    def slot_of(self, worker: Worker) -> Slot | None:
        """The slot that the worker occupies; None for one that was retired."""
        if worker.slot < len(self.slots) and self.slots[worker.slot].occupant == worker.number:
            return self.slots[worker.slot]
        return None

    def occupant(self, slot: Slot) -> Worker | None:
        """The worker that serves in the slot, or is to."""
        return None if slot.occupant is None else self.workers[slot.occupant]

    def is_ready(self, slot: Slot) -> bool:
        """Whether its worker serves."""
        worker = self.occupant(slot)
        return worker is not None and worker.state is State.READY

    def beating(self) -> list[Worker]:
        """Those whose heartbeat means something."""
        return [worker for worker in self.workers.values() if worker.state in (State.READY, State.DRAINING)]

    # --- generations --------------------------------------------------------------------------------------------------

    def begin_generation(self, timing: Timing) -> None:
        """One more, whose workers are as patient as `timing` says."""
        wanted = {self.generation, self.proven, *(slot.generation for slot in self.slots)}
        self._timings = {each: self._timings[each] for each in wanted if each in self._timings}
        self.generation += 1
        self._timings[self.generation] = timing

    # --- steps --------------------------------------------------------------------------------------------------------

    def fill(self, slot: Slot) -> list[Command]:
        """Give the slot a worker."""
        slot.due = None
        worker, commands = self.make(slot.number, slot.generation)
        slot.occupant = worker.number
        return commands

    def make(self, slot: int, generation: int) -> tuple[Worker, list[Command]]:
        """A worker that is not the slot's yet."""
        worker = Worker(self._next_worker, slot, generation, self._timings[generation])
        self._next_worker += 1
        self.workers[worker.number] = worker
        return worker, [Spawn(worker.number, slot, generation)]

    def retire(self, number: int, now: float) -> list[Command]:
        """Ask a worker to end; it is asked once, and killed if it takes too long."""
        worker = self.workers[number]
        if worker.state not in (State.STARTING, State.READY):
            return []
        worker.become(State.DRAINING)
        worker.kill_at = now + worker.timing.drain + STOP_GRACE
        return [Drain(number)]

    def retire_all(self, now: float) -> list[Command]:
        """Everybody."""
        return [command for number in list(self.workers) for command in self.retire(number, now)]

    def kill(self, worker: Worker, fate: KillReason) -> list[Command]:
        """End one now, for this reason, unless there was one before."""
        worker.fate = worker.fate or fate
        if worker.state is State.KILLED:
            return []
        worker.become(State.KILLED)
        worker.kill_at = None
        return [Kill(worker.number)]

    def kill_all(self) -> list[Command]:
        """Everybody, as the server ends."""
        return [command for worker in self.workers.values() for command in self.kill(worker, KillReason.ENDING)]

    def kill_overdue(self, now: float) -> list[Command]:
        """Those that have not become ready, or not ended, in time."""
        overdue = [w for w in self.workers.values() if w.kill_at is not None and now >= w.kill_at]
        commands: list[Command] = []
        draining = sum(worker.state is State.DRAINING for worker in overdue)
        if draining:
            commands.append(EmitEvent(DrainTimedOut(draining)))
        for worker in overdue:
            starting = worker.state is State.STARTING
            if starting:
                worker.unable = f"not ready after {worker.timing.boot:g} s (--boot-timeout)"
            commands += self.kill(worker, KillReason.BOOT if starting else KillReason.OVERDUE)
        return commands
