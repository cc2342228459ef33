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
    Event,
    ForkFailed,
    Ready,
    Stopping,
    WorkerExited,
    WorkerFailedToStart,
)
from .restart import History, Policy, after_death, after_fork, delay

# --- facts: what happened ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The supervisor is there, and holds its sockets."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker was forked."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """It could not be forked."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker says that it accepts."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerUnable:
    """A worker says why it cannot start; it is about to end."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker's process has ended and has been reaped; `clean`: with exit status 0."""

    worker: int
    cause: str
    clean: bool = False


@dataclass(frozen=True, slots=True)
class StopAsked:
    """By a signal, `by` its name; `at_once`: without a drain."""

    by: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened, but something may be due."""


Fact = Started | Spawned | SpawnFailed | WorkerReady | WorkerUnable | WorkerDied | StopAsked | TimePassed

# --- commands: what to do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork `worker` for `slot`. Answered by Spawned or SpawnFailed before any other fact, as a fork is not awaited."""

    worker: int
    slot: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask a worker to stop accepting and to end when its connections have ended (SIGTERM). Once for each worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker now (SIGKILL)."""

    worker: int


@dataclass(frozen=True, slots=True)
class Note:
    """Tell who observes."""

    event: Event


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Every worker accepts, for the first time."""

    workers: int


@dataclass(frozen=True, slots=True)
class Finish:
    """No worker is left: end with `code`; `reason` is for the person who started the program."""

    code: ExitCode
    reason: str = ""


Command = Spawn | Drain | Kill | Note | AnnounceReady | Finish

# --- the table --------------------------------------------------------------------------------------------------------


class State(enum.Enum):
    """The life of a worker; `_MAY_BECOME` says what may follow what."""

    FORKING = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    DRAINING = enum.auto()
    """It was sent SIGTERM."""
    KILLED = enum.auto()
    """It was sent SIGKILL, and is still to be reaped."""


_MAY_BECOME = {
    State.FORKING: {State.STARTING},
    State.STARTING: {State.READY, State.DRAINING, State.KILLED},
    State.READY: {State.DRAINING, State.KILLED},
    State.DRAINING: {State.KILLED},
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
    state: State = State.FORKING
    pid: int = 0
    ready_since: float | None = None
    unable: str = ""

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


#: Seconds between attempts of a fork that the system refuses.
FORK_RETRY = (0.1, 0.2, 0.5, 1.0)
#: How much longer than the drain a worker may take before it is killed. It ends itself within seven seconds, in which a
#: lifespan object's `stop()`, tasks, threads and exit handlers have their turn.
STOP_GRACE = 8.0


class Roster:
    """The state of all slots and workers. `apply` is the only way in; `next_due` says when to come back at last."""

    def __init__(
        self, slots: int, drain_timeout: float, dice: Callable[[], float], policy: Policy | None = None
    ) -> None:
        self.phase = Phase.BOOTING
        self.slots = [Slot(number) for number in range(slots)]
        self.workers: dict[int, Worker] = {}
        self._drain_timeout = drain_timeout
        self._dice = dice
        self._policy = Policy() if policy is None else policy
        self._next_worker = 0
        self._announced = False
        self._kill_at: float | None = None
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
            case StopAsked():
                commands = self._stop_asked(fact, now)
            case TimePassed():
                pass
        return commands + self._due(now) + self._finished()

    def next_due(self) -> float | None:
        """When `TimePassed` will have something to do; None: not before another fact."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        if self._kill_at is not None:
            times.append(self._kill_at)
        return min(times, default=None)

    # --- one fact each ------------------------------------------------------------------------------------------------

    def _spawned(self, fact: Spawned, now: float) -> list[Command]:
        worker = self.workers[fact.worker]
        worker.pid = fact.pid
        worker.become(State.STARTING)
        slot = self.slots[worker.slot]
        slot.history = after_fork(slot.history, now, self._policy)
        slot.refused = 0
        return []

    def _spawn_failed(self, fact: SpawnFailed, now: float) -> list[Command]:
        slot = self.slots[self.workers.pop(fact.worker).slot]
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
        if self.phase is Phase.BOOTING:
            self.phase = Phase.SERVING
        ready = sum(worker.state is State.READY for worker in self.workers.values())
        if self._announced or ready < len(self.slots):
            return []
        self._announced = True
        return [Note(Ready(ready)), AnnounceReady(ready)]

    def _unable(self, fact: WorkerUnable) -> list[Command]:
        worker = self.workers.get(fact.worker)
        if worker is not None:
            worker.unable = fact.reason
        return []

    def _died(self, fact: WorkerDied, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker, None)
        if worker is None:
            return []
        if self.phase is Phase.STOPPING:
            # One that was still starting has no handler for SIGTERM yet, and nothing to drain.
            crashed = worker.state is State.DRAINING and worker.ready_since is not None and not fact.clean
            return [Note(WorkerExited(worker.slot, worker.pid, fact.cause, None))] if crashed else []
        slot = self.slots[worker.slot]
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
        slot.due = now + seconds
        commands.append(Note(WorkerExited(slot.number, worker.pid, fact.cause, seconds)))
        return commands

    def _hopeless(self) -> bool:
        """While one worker serves, or a slot still has credit, there is something to hope for."""
        if any(worker.state is State.READY for worker in self.workers.values()):
            return False
        return all(slot.history.failures >= self._policy.patience for slot in self.slots)

    def _stop_asked(self, fact: StopAsked, now: float) -> list[Command]:
        if self.phase is Phase.STOPPING or fact.at_once:
            # Asked a second time, or not asked for a drain.
            note = [] if self.phase is Phase.STOPPING and self._kill_at is None else [Note(Stopping(fact.by, True))]
            self._begin_stop()
            return [*note, *self._kill_all()]
        self._begin_stop()
        self._kill_at = now + self._drain_timeout + STOP_GRACE
        commands: list[Command] = [Note(Stopping(fact.by, False))]
        for worker in self.workers.values():
            worker.become(State.DRAINING)
            commands.append(Drain(worker.number))
        return commands

    # --- what follows from the state ----------------------------------------------------------------------------------

    def _begin_stop(self) -> None:
        self.phase = Phase.STOPPING
        for slot in self.slots:
            slot.due = None

    def _give_up(self, outcome: Finish) -> list[Command]:
        self._begin_stop()
        self._outcome = outcome
        return self._kill_all()

    def _kill_all(self) -> list[Command]:
        self._kill_at = None
        victims = [worker for worker in self.workers.values() if worker.state is not State.KILLED]
        for worker in victims:
            worker.become(State.KILLED)
        return [Kill(worker.number) for worker in victims]

    def _due(self, now: float) -> list[Command]:
        commands: list[Command] = []
        if self._kill_at is not None and now >= self._kill_at and self.workers:
            commands.append(Note(DrainOverdue(len(self.workers))))
            commands += self._kill_all()
        for slot in self.slots:
            if slot.due is not None and now >= slot.due:
                slot.due = None
                worker = Worker(self._next_worker, slot.number)
                self._next_worker += 1
                self.workers[worker.number] = worker
                commands.append(Spawn(worker.number, slot.number))
        return commands

    def _finished(self) -> list[Command]:
        if self.phase is not Phase.STOPPING or self.workers:
            return []
        self.phase = Phase.FINISHED
        return [self._outcome]
