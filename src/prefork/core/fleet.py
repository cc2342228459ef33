"""The registry of slots and workers, and the steps that change it: make, retire or kill a worker.

Each step updates the registry and returns the commands it takes. `roster.py` and `rolling_restart.py` decide when.
"""

from __future__ import annotations

from ..events import DrainTimedOut
from .facts import Command, Drain, EmitEvent, Kill, Spawn
from .states import KillReason, Slot, Timing, Worker, WorkerState
from .time_limits import worker_stop_timeout


class Fleet:
    """All slots and workers. `timing` is that of generation 0; each later generation brings its own."""

    def __init__(self, slots: int, timing: Timing) -> None:
        self.generation = 0
        """The last one that a reload has begun."""
        self.last_good = 0
        """The last one that every slot has had. New slots begin with it."""
        self.slots = [Slot(number) for number in range(slots)]
        self.workers: dict[int, Worker] = {}
        """Every worker that is not reaped yet, by id."""
        self._timings = {0: timing}
        self._next_id = 0

    def slot_of(self, worker: Worker) -> Slot | None:
        """Return the slot that the worker occupies; None if it has none, as after its replacement."""
        if worker.slot < len(self.slots) and self.slots[worker.slot].occupant == worker.id:
            return self.slots[worker.slot]
        return None

    def occupant(self, slot: Slot) -> Worker | None:
        """Return the worker that serves in the slot, or is to."""
        return None if slot.occupant is None else self.workers[slot.occupant]

    def is_ready(self, slot: Slot) -> bool:
        worker = self.occupant(slot)
        return worker is not None and worker.state is WorkerState.READY

    def beating(self) -> list[Worker]:
        """Return the workers whose heartbeat means something: their loop has to iterate."""
        return [worker for worker in self.workers.values() if worker.state in (WorkerState.READY, WorkerState.DRAINING)]

    # --- steps --------------------------------------------------------------------------------------------------------

    def begin_generation(self, timing: Timing) -> None:
        in_use = {self.generation, self.last_good, *(slot.generation for slot in self.slots)}
        self._timings = {each: self._timings[each] for each in in_use if each in self._timings}
        self.generation += 1
        self._timings[self.generation] = timing

    def fill(self, slot: Slot) -> list[Command]:
        """Make a worker that occupies the slot."""
        slot.due = None
        worker, commands = self.make(slot.number, slot.generation)
        slot.occupant = worker.id
        return commands

    def make(self, slot: int, generation: int) -> tuple[Worker, list[Command]]:
        """Make a worker that does not occupy the slot yet."""
        worker = Worker(self._next_id, slot, generation, self._timings[generation])
        self._next_id += 1
        self.workers[worker.id] = worker
        return worker, [Spawn(worker.id, slot, generation)]

    def retire(self, worker_id: int, now: float) -> list[Command]:
        """Ask a worker to end, unless it was asked before. It is killed if it takes too long."""
        worker = self.workers[worker_id]
        if worker.state not in (WorkerState.STARTING, WorkerState.READY):
            return []
        worker.become(WorkerState.DRAINING)
        worker.kill_at = now + worker_stop_timeout(worker.timing.drain)
        return [Drain(worker_id)]

    def retire_all(self, now: float) -> list[Command]:
        return [command for worker_id in list(self.workers) for command in self.retire(worker_id, now)]

    def kill(self, worker: Worker, reason: KillReason) -> list[Command]:
        """Kill a worker. The first reason stays."""
        worker.kill_reason = worker.kill_reason or reason
        if worker.state is WorkerState.KILLED:
            return []
        worker.become(WorkerState.KILLED)
        worker.kill_at = None
        return [Kill(worker.id)]

    def kill_all(self) -> list[Command]:
        return [command for worker in self.workers.values() for command in self.kill(worker, KillReason.SHUTDOWN)]

    def kill_overdue(self, now: float) -> list[Command]:
        """Kill the workers that did not become ready, or did not end, in time."""
        overdue = [worker for worker in self.workers.values() if worker.kill_at is not None and now >= worker.kill_at]
        commands: list[Command] = []
        draining = sum(worker.state is WorkerState.DRAINING for worker in overdue)
        if draining:
            commands.append(EmitEvent(DrainTimedOut(draining)))
        for worker in overdue:
            reason = KillReason.DRAIN_TIMEOUT
            if worker.state is WorkerState.STARTING:
                reason = KillReason.BOOT_TIMEOUT
                missing = f": {worker.missing}" if worker.missing else ""
                worker.start_error = f"not ready after {worker.timing.boot:g} s (--boot-timeout){missing}"
            commands += self.kill(worker, reason)
        return commands
