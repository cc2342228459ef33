"""The registry of slots and workers, and the steps that change it: make, retire or kill a worker.

Each step updates the registry and returns the commands it takes. `roster.py` and `rolling_restart.py` decide when.
"""

from __future__ import annotations

from ..events import DrainTimedOut
from .facts import Command, Drain, EmitEvent, HurryDrain, Kill, Spawn
from .states import KillReason, Slot, Timing, Worker, WorkerState
from .time_limits import worker_stop_timeout

_CROWDED = "so do two newer ones of its slot"
#: Workers of one slot that drain beside the one that serves, before the oldest of them has to hurry. Without a bound,
#: connections that never end and frequent reloads would fill the memory.
MAX_OLD_WORKERS = 2


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

    @property
    def timing(self) -> Timing:
        """The timeouts of the last generation that every slot has had."""
        return self._timings[self.last_good]

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
        """Have a worker drain while the server goes on, unless it drains already.

        Its connections have the drain timeout of reloads. Of the workers of its slot that drain, the oldest beyond
        MAX_OLD_WORKERS have the drain timeout of stops, from now on.
        """
        worker = self.workers[worker_id]
        if worker.state not in (WorkerState.STARTING, WorkerState.READY):
            return []
        # One that still starts has no connections, and may hang.
        timeout = worker.timing.reload_drain if worker.state is WorkerState.READY else worker.timing.drain
        worker.become(WorkerState.DRAINING)
        self._drain_until(worker, None if timeout is None else now + timeout)
        drain = Drain(worker_id, worker.drain_until)
        draining = [
            each for each in self.workers.values() if each.slot == worker.slot and each.state is WorkerState.DRAINING
        ]
        crowded = sorted(draining, key=lambda each: each.id)[:-MAX_OLD_WORKERS]
        return [drain, *(command for each in crowded for command in self.hurry(each, now, _CROWDED))]

    def retire_all(self, now: float) -> list[Command]:
        return [command for worker_id in list(self.workers) for command in self.retire(worker_id, now)]

    def stop_all(self, now: float) -> list[Command]:
        """Have every worker end within the drain timeout of stops, also those that drain already."""
        commands: list[Command] = []
        for worker in self.workers.values():
            if worker.state in (WorkerState.STARTING, WorkerState.READY):
                worker.become(WorkerState.DRAINING)
                self._drain_until(worker, now + worker.timing.drain)
                commands.append(Drain(worker.id, worker.drain_until))
            else:
                commands += self.hurry(worker, now)
        return commands

    def hurry_all(self, now: float) -> list[Command]:
        """Have the workers that drain end within the drain timeout of stops."""
        return [command for worker in self.workers.values() for command in self.hurry(worker, now)]

    def hurry(self, worker: Worker, now: float, why: str = "") -> list[Command]:
        """Give a worker that drains the drain timeout of stops from now on, unless it has less left."""
        until = now + worker.timing.drain
        if worker.state is not WorkerState.DRAINING or (worker.drain_until or until + 1) <= until:
            return []
        self._drain_until(worker, until)
        return [HurryDrain(worker.id, until, why)]

    def _drain_until(self, worker: Worker, until: float | None) -> None:
        worker.drain_until = until
        worker.kill_at = None if until is None else until + worker_stop_timeout(0, worker.timing.stop)

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
