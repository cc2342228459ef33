"""Who should be running: facts about workers and the time go in, commands come out.

Pure: no process, no clock, no descriptor. The supervisor turns what it sees into facts and the commands into system
calls, and decides nothing by itself.

A *slot* is a place for one worker, numbered from 0, and stays; a *worker* is one process, with a number of its own that
is never used again, so that news of a predecessor cannot be mistaken for news of its successor.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import ExitCode
from ..events import (
    CrashLoop,
    DrainOverdue,
    ForkFailed,
    Ready,
    Reloaded,
    ReloadFailed,
    ReloadIgnored,
    Reloading,
    Scaled,
    Stopping,
    WorkerExited,
    WorkerFailedToStart,
    WorkerHung,
)
from .facts import (
    AnnounceReady,
    Command,
    Drain,
    Dump,
    Fact,
    Finish,
    HeartbeatsRead,
    Kill,
    Note,
    ReadHeartbeats,
    ReloadAsked,
    ScaleAsked,
    Spawn,
    Spawned,
    SpawnFailed,
    Started,
    StopAsked,
    TimePassed,
    WorkerDied,
    WorkerReady,
    WorkerUnable,
)
from .restart import History, Policy, after_death, after_fork, delay

# --- the table --------------------------------------------------------------------------------------------------------


class State(enum.Enum):
    """The life of a worker; `_MAY_BECOME` says what may follow what."""

    FORKING = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    DRAINING = enum.auto()
    """It was sent SIGTERM."""
    HUNG = enum.auto()
    """Its loop does not turn: it was asked for its stacks, and is killed in a moment."""
    KILLED = enum.auto()
    """It was sent SIGKILL, and is still to be reaped."""


_MAY_BECOME = {
    State.FORKING: {State.STARTING},
    State.STARTING: {State.READY, State.DRAINING, State.KILLED},
    State.READY: {State.DRAINING, State.HUNG, State.KILLED},
    State.DRAINING: {State.HUNG, State.KILLED},
    State.HUNG: {State.KILLED},
    State.KILLED: set[State](),
}


class Phase(enum.Enum):
    """The life of the roster; it only goes forward."""

    BOOTING = enum.auto()
    """No worker has ever been ready: one that cannot start ends the program."""
    SERVING = enum.auto()
    STOPPING = enum.auto()
    FINISHED = enum.auto()


@dataclass(slots=True)
class Worker:
    """One process."""

    number: int
    slot: int
    generation: int
    state: State = State.FORKING
    pid: int = 0
    ready_since: float | None = None
    unable: str = ""
    kill_at: float | None = None
    """When it is killed if it is still there: it has not become ready, or not ended, in time."""

    def become(self, state: State) -> None:
        assert state in _MAY_BECOME[self.state], f"worker {self.number}: {self.state.name} to {state.name}"
        self.state = state


@dataclass(slots=True)
class Slot:
    """A place for one worker."""

    number: int
    history: History = field(default_factory=History)
    due: float | None = None
    """When a worker is to be forked; None while there is one, or none is wanted."""
    refused: int = 0
    """Forks in a row that the system refused."""
    occupant: int | None = None
    """The worker that serves here, or is to; one that was retired is none any more."""


@dataclass(slots=True)
class Reload:
    """One slot at a time: its successor is forked, proves that it is ready, and only then its predecessor drains."""

    left: list[int]
    """Slots that still have a worker of the generation before."""
    successor: int | None = None
    """The worker that is to prove itself."""
    again: str = ""
    """Asked for once more meanwhile, and by whom: what has been replaced already may be old again."""


#: Seconds between attempts of a fork that the system refuses.
FORK_RETRY = (0.1, 0.2, 0.5, 1.0)
#: How much longer than the drain a worker may take before it is killed. It ends itself within seven seconds, in which a
#: lifespan object's `stop()`, tasks, threads and exit handlers have their turn.
STOP_GRACE = 8.0
#: Seconds between looks at the heartbeats; a shorter hang timeout is looked at more often.
LOOK_INTERVAL = 0.5
#: Seconds that a hung worker has to tell its stacks.
DUMP_TIME = 0.3


class Roster:
    """The state of all slots and workers. `apply` is the only way in; `next_due` says when to come back at last."""

    def __init__(
        self,
        slots: int,
        drain_timeout: float,
        dice: Callable[[], float],
        policy: Policy | None = None,
        boot_timeout: float = 60.0,
        hang_timeout: float = 30.0,
    ) -> None:
        self.phase = Phase.BOOTING
        self.generation = 0
        self.slots = [Slot(number) for number in range(slots)]
        self.workers: dict[int, Worker] = {}
        self.reload: Reload | None = None
        self._drain_timeout = drain_timeout
        self._boot_timeout = boot_timeout
        self._hang_timeout = hang_timeout
        self._look_interval = min(LOOK_INTERVAL, hang_timeout / 4)
        self._looked: float | None = None
        self._dice = dice
        self._policy = Policy() if policy is None else policy
        self._next_worker = 0
        self._announced = False
        self._at_once = False
        self._outcome = Finish(ExitCode.OK)

    def apply(self, fact: Fact, now: float) -> list[Command]:
        """What to do about `fact`. `now` is seconds on a clock that never goes back."""
        if self.phase is Phase.FINISHED:
            return []
        commands: list[Command] = []
        match fact:
            case Started():
                for slot in self.slots:
                    slot.due = now
            case Spawned():
                commands = self._spawned(fact, now)
            case SpawnFailed():
                commands = self._spawn_failed(fact, now)
            case WorkerReady():
                commands = self._ready(fact.worker, now)
            case WorkerUnable():
                commands = self._unable(fact)
            case WorkerDied():
                commands = self._died(fact, now)
            case HeartbeatsRead():
                commands = self._heartbeats_read(fact, now)
            case StopAsked():
                commands = self._stop_asked(fact, now)
            case ReloadAsked():
                commands = self._reload_asked(fact.by)
            case ScaleAsked():
                commands = self._scale_asked(fact, now)
            case TimePassed():
                pass
        return commands + self._due(now) + self._finished()

    def next_due(self) -> float | None:
        """When `TimePassed` will have something to do; None: not before another fact."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        times += [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if self._looked is not None and self._beating():
            times.append(self._looked + self._look_interval)
        return min(times, default=None)

    def serving(self) -> bool:
        """Whether a worker accepts, or the last ones are finishing what they have."""
        return self.phase is not Phase.FINISHED and bool(self._beating())

    # --- a worker's life ----------------------------------------------------------------------------------------------

    def _spawned(self, fact: Spawned, now: float) -> list[Command]:
        worker = self.workers[fact.worker]
        worker.pid = fact.pid
        worker.become(State.STARTING)
        worker.kill_at = now + self._boot_timeout
        if worker.slot < len(self.slots) and not self._is_successor(worker):
            slot = self.slots[worker.slot]
            slot.history = after_fork(slot.history, now, self._policy)
            slot.refused = 0
        return []

    def _spawn_failed(self, fact: SpawnFailed, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker)
        if self._is_successor(worker):
            return self._reload_failed(worker, f"it cannot be forked: {fact.reason}")
        slot = self.slots[worker.slot]
        slot.occupant = None
        slot.due = now + FORK_RETRY[min(slot.refused, len(FORK_RETRY) - 1)]
        slot.refused += 1
        # One line, however long the shortage lasts.
        return [Note(ForkFailed(slot.number, fact.reason))] if slot.refused == 1 else []

    def _ready(self, number: int, now: float) -> list[Command]:
        worker = self.workers.get(number)
        if worker is None or worker.state is not State.STARTING:
            return []
        worker.become(State.READY)
        worker.ready_since = now
        worker.kill_at = None
        if self.phase is Phase.BOOTING:
            self.phase = Phase.SERVING
        commands = self._take_over(worker, now) if self._is_successor(worker) else []
        ready = sum(self._is_ready(slot) for slot in self.slots)
        if self._announced or ready < len(self.slots):
            return commands
        self._announced = True
        return [*commands, Note(Ready(ready)), AnnounceReady(ready)]

    def _unable(self, fact: WorkerUnable) -> list[Command]:
        worker = self.workers.get(fact.worker)
        if worker is not None:
            worker.unable = fact.reason
        return []

    def _died(self, fact: WorkerDied, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker, None)
        if worker is None:
            return []
        if self._is_successor(worker):
            return self._reload_failed(worker, worker.unable or f"it died while it started: {fact.cause}")
        slot = self._slot_of(worker)
        if self.phase is Phase.STOPPING or slot is None:
            # One that was still starting has no handler for SIGTERM yet, and nothing to drain.
            crashed = worker.state is State.DRAINING and worker.ready_since is not None and not fact.clean
            return [Note(WorkerExited(worker.slot, worker.pid, fact.cause, None))] if crashed else []
        slot.occupant = None
        served = None if worker.ready_since is None else now - worker.ready_since
        slot.history = after_death(slot.history, served, self._dice(), self._policy)
        if self.phase is Phase.BOOTING:
            reason = worker.unable or f"worker {slot.number} (pid {worker.pid}) died while it started: {fact.cause}"
            return self._give_up(Finish(ExitCode.SERVICE, reason))
        commands: list[Command] = []
        if worker.unable:
            commands.append(Note(WorkerFailedToStart(slot.number, worker.unable)))
        if self._hopeless():
            commands.append(Note(WorkerExited(slot.number, worker.pid, fact.cause, None)))
            commands.append(Note(CrashLoop(slot.history.failures)))
            reason = f"no worker is left, and each one died {self._policy.patience} times or more in a row"
            return commands + self._give_up(Finish(ExitCode.CRASH_LOOP, reason))
        seconds = delay(slot.history, now, self._policy)
        if self._successor_of(slot) is None:
            slot.due = now + seconds
        commands.append(Note(WorkerExited(slot.number, worker.pid, fact.cause, seconds)))
        return commands

    # --- hangs --------------------------------------------------------------------------------------------------------

    def _beating(self) -> list[Worker]:
        """Those whose heartbeat means something."""
        return [worker for worker in self.workers.values() if worker.state in (State.READY, State.DRAINING)]

    def _look(self, now: float) -> list[Command]:
        if not self._beating() or (self._looked is not None and now < self._looked + self._look_interval):
            return []
        # A look that comes late was kept from us: a suspended machine, a frozen group. Our clock ran and theirs did
        # not, so nobody is judged until they have had the time of one more look.
        late = self._looked is None or now - self._looked > 3 * self._look_interval
        self._looked = now
        return [] if late else [ReadHeartbeats()]

    def _heartbeats_read(self, fact: HeartbeatsRead, now: float) -> list[Command]:
        commands: list[Command] = []
        for worker in self._beating():
            age = fact.ages.get(worker.number, 0.0)
            if age > self._hang_timeout:
                worker.become(State.HUNG)
                worker.kill_at = now + DUMP_TIME
                commands += [Note(WorkerHung(worker.slot, worker.pid, age)), Dump(worker.number)]
        return commands

    # --- who is who ---------------------------------------------------------------------------------------------------

    def _slot_of(self, worker: Worker) -> Slot | None:
        """The slot that the worker occupies; None for one that was retired."""
        if worker.slot < len(self.slots) and self.slots[worker.slot].occupant == worker.number:
            return self.slots[worker.slot]
        return None

    def _is_ready(self, slot: Slot) -> bool:
        return slot.occupant is not None and self.workers[slot.occupant].state is State.READY

    def _hopeless(self) -> bool:
        """While one worker serves, or a slot still has credit, there is something to hope for."""
        if any(worker.state is State.READY for worker in self.workers.values()):
            return False
        return all(slot.history.failures >= self._policy.patience for slot in self.slots)

    # --- reload -------------------------------------------------------------------------------------------------------

    def _reload_asked(self, by: str) -> list[Command]:
        if self.phase is Phase.BOOTING:
            return [Note(ReloadIgnored(by, "the first workers are still starting, with what is there now"))]
        if self.phase is Phase.STOPPING:
            return [Note(ReloadIgnored(by, "the server is stopping"))]
        if self.reload is not None:
            self.reload.again = by
            return []
        self.generation += 1
        self.reload = Reload([slot.number for slot in self.slots])
        return [Note(Reloading(by, self.generation)), *self._next_successor()]

    def _next_successor(self) -> list[Command]:
        """Fork for the next slot that needs it; an empty one gets its worker anyway, and that is a new one."""
        reload = self.reload
        assert reload is not None
        while reload.left:
            number = reload.left.pop(0)
            if number < len(self.slots) and self.slots[number].occupant is not None:
                worker = self._make_worker(number)
                reload.successor = worker.number
                return [Spawn(worker.number, number)]
        self.reload = None
        notes: list[Command] = [Note(Reloaded(self.generation))]
        return notes + (self._reload_asked(reload.again) if reload.again else [])

    def _take_over(self, worker: Worker, now: float) -> list[Command]:
        """The successor is ready: it has the slot, and its predecessor drains."""
        assert self.reload is not None
        self.reload.successor = None
        slot = self.slots[worker.slot]
        predecessor = slot.occupant
        slot.occupant = worker.number
        slot.due = None
        slot.history = History(forks=slot.history.forks)
        return [*([] if predecessor is None else self._retire(predecessor, now)), *self._next_successor()]

    def _reload_failed(self, worker: Worker, reason: str) -> list[Command]:
        """What does not boot never replaces what runs; the rest of the reload is off."""
        self.reload = None
        if self.phase is Phase.STOPPING:
            return []
        slot = self.slots[worker.slot]
        if slot.occupant is None and slot.due is None:
            # Its predecessor died meanwhile, and counted on it.
            slot.due = 0.0
        return [Note(ReloadFailed(worker.slot, reason))]

    def _is_successor(self, worker: Worker) -> bool:
        return self.reload is not None and self.reload.successor == worker.number

    def _successor_of(self, slot: Slot) -> Worker | None:
        if self.reload is None or self.reload.successor is None:
            return None
        worker = self.workers[self.reload.successor]
        return worker if worker.slot == slot.number else None

    # --- scale --------------------------------------------------------------------------------------------------------

    def _scale_asked(self, fact: ScaleAsked, now: float) -> list[Command]:
        if self.phase is not Phase.SERVING:
            return []
        commands: list[Command] = []
        wanted = max(1, len(self.slots) + fact.more)
        while len(self.slots) < wanted:
            self.slots.append(Slot(len(self.slots), due=now))
        while len(self.slots) > wanted:
            slot = self.slots.pop()
            successor = self._successor_of(slot)
            if successor is not None and self.reload is not None:
                self.reload.successor = None
                commands += [*self._retire(successor.number, now), *self._next_successor()]
            if slot.occupant is not None:
                commands += self._retire(slot.occupant, now)
        return [Note(Scaled(fact.by, wanted)), *commands]

    def _retire(self, number: int, now: float) -> list[Command]:
        """Ask a worker to end; it is asked once, and killed if it takes too long."""
        worker = self.workers[number]
        if worker.state not in (State.STARTING, State.READY):
            return []
        worker.become(State.DRAINING)
        worker.kill_at = now + self._drain_timeout + STOP_GRACE
        return [Drain(number)]

    # --- stop ---------------------------------------------------------------------------------------------------------

    def _stop_asked(self, fact: StopAsked, now: float) -> list[Command]:
        second = self.phase is Phase.STOPPING
        self._begin_stop()
        if second or fact.at_once:
            note: list[Command] = [] if self._at_once else [Note(Stopping(fact.by, True))]
            self._at_once = True
            return [*note, *self._kill_all()]
        commands: list[Command] = [Note(Stopping(fact.by, False))]
        for worker in list(self.workers.values()):
            commands += self._retire(worker.number, now)
        return commands

    def _begin_stop(self) -> None:
        self.phase = Phase.STOPPING
        self.reload = None
        for slot in self.slots:
            slot.due = None

    def _give_up(self, outcome: Finish) -> list[Command]:
        self._begin_stop()
        self._at_once = True
        self._outcome = outcome
        return self._kill_all()

    def _kill_all(self) -> list[Command]:
        return [command for worker in list(self.workers.values()) for command in self._kill(worker)]

    def _kill(self, worker: Worker) -> list[Command]:
        if worker.state is State.KILLED:
            return []
        worker.become(State.KILLED)
        worker.kill_at = None
        return [Kill(worker.number)]

    # --- what is due --------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[Command]:
        return self._overdue(now) + self._wanted(now) + self._look(now)

    def _overdue(self, now: float) -> list[Command]:
        overdue = [w for w in self.workers.values() if w.kill_at is not None and now >= w.kill_at]
        commands: list[Command] = []
        draining = sum(worker.state is State.DRAINING for worker in overdue)
        if draining:
            commands.append(Note(DrainOverdue(draining)))
        for worker in overdue:
            if worker.state is State.STARTING:
                worker.unable = f"not ready after {self._boot_timeout:g} s (--boot-timeout)"
            commands += self._kill(worker)
        return commands

    def _wanted(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for slot in self.slots:
            if slot.due is not None and now >= slot.due:
                slot.due = None
                worker = self._make_worker(slot.number)
                slot.occupant = worker.number
                commands.append(Spawn(worker.number, slot.number))
        return commands

    def _make_worker(self, slot: int) -> Worker:
        worker = Worker(self._next_worker, slot, self.generation)
        self._next_worker += 1
        self.workers[worker.number] = worker
        return worker

    def _finished(self) -> list[Command]:
        if self.phase is not Phase.STOPPING or self.workers:
            return []
        self.phase = Phase.FINISHED
        return [self._outcome]
