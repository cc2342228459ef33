"""Who should be running: facts about workers and the time go in, commands come out.

Pure: no process, no clock, no descriptor. The supervisor turns what it sees into facts and the commands into system
calls, and decides nothing by itself.

A *slot* is a place for one worker, numbered from 0, and stays; a *worker* is one process, with a number of its own that
is never used again, so that news of a predecessor cannot be mistaken for news of its successor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..errors import ExitCode
from ..events import (
    CrashLoop,
    DrainOverdue,
    ForkFailed,
    Ready,
    RecycleFailed,
    Recycling,
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
    Cause,
    Command,
    Drain,
    Dump,
    Fact,
    Finish,
    HandedOver,
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
    TakenBack,
    TimePassed,
    WorkerDied,
    WorkerDraining,
    WorkerReady,
    WorkerSpent,
    WorkerUnable,
)
from .heartbeats import Watch
from .restart import History, Policy, after_death, after_fork, delay
from .workers import Fate, Phase, Purpose, Rolling, Slot, State, Timing, Worker

#: Seconds between attempts of a fork that the system refuses.
FORK_RETRY = (0.1, 0.2, 0.5, 1.0)
#: How much longer than the drain a worker may take before it is killed. It ends itself within seven seconds, in which a
#: lifespan object's `stop()`, tasks, threads and exit handlers have their turn.
STOP_GRACE = 8.0
#: Seconds after a worker's successor has failed until recycling is tried again.
RECYCLE_RETRY = 30.0
#: Seconds between two that are recycled: limits that are too low for the load shall cost forks, not the service.
RECYCLE_PAUSE = 1.0
#: Seconds that a hung worker has to tell its stacks.
DUMP_TIME = 0.3


class Roster:
    """The state of all slots and workers. `apply` is the only way in; `next_due` says when to come back at last."""

    def __init__(
        self,
        slots: int,
        timing: Timing,
        dice: Callable[[], float],
        policy: Policy | None = None,
    ) -> None:
        self.phase = Phase.BOOTING
        self.generation = 0
        self.slots = [Slot(number) for number in range(slots)]
        self.workers: dict[int, Worker] = {}
        self.rolling: Rolling | None = None
        self.deaths: Counter[Cause] = Counter()
        """How workers ended that were not asked to, by the kind of their cause."""
        self._timings = {0: timing}
        """By generation."""
        self._proven = 0
        """The last generation that every slot has had: new slots begin with it."""
        self._watch = Watch()
        self._recycle_at = 0.0
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
            case WorkerDraining():
                commands = self._draining(fact.worker)
            case WorkerSpent():
                self._spent(fact)
            case WorkerDied():
                commands = self._died(fact, now)
            case HeartbeatsRead():
                commands = self._heartbeats_read(fact, now)
            case StopAsked():
                commands = self._stop_asked(fact, now)
            case ReloadAsked():
                commands = self._reload_asked(fact.by, fact.timing)
            case ScaleAsked():
                commands = self._scale_asked(fact, now)
            case HandedOver():
                commands = self._handed_over(now)
            case TakenBack():
                self._taken_back(now)
            case TimePassed():
                pass
        return commands + self._due(now) + self._finished()

    def next_due(self, now: float) -> float | None:
        """When `TimePassed` will have something to do; None: not before another fact."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        times += [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if self._beating():
            times.append(self._watch.due(now))
        if self._spent_slot() is not None and self.rolling is None:
            times.append(self._recycle_at)
        return min(times, default=None)

    def serving(self) -> bool:
        """Whether a worker accepts, or the last ones are finishing what they have."""
        return self.phase is not Phase.FINISHED and bool(self._beating())

    def accepting(self) -> bool:
        """Whether a worker accepts, or may do for another moment."""
        return any(worker.accepting for worker in self.workers.values())

    # --- a worker's life ----------------------------------------------------------------------------------------------

    def _spawned(self, fact: Spawned, now: float) -> list[Command]:
        worker = self.workers[fact.worker]
        worker.pid = fact.pid
        worker.become(State.STARTING)
        worker.kill_at = now + worker.timing.boot
        if worker.slot < len(self.slots) and not self._is_successor(worker):
            slot = self.slots[worker.slot]
            slot.history = after_fork(slot.history, now, self._policy)
            slot.refused = 0
        return []

    def _spawn_failed(self, fact: SpawnFailed, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker)
        if self._is_successor(worker):
            return self._rolling_failed(worker, f"it cannot be forked: {fact.reason}", now)
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
        worker.accepting = True
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

    def _draining(self, number: int) -> list[Command]:
        worker = self.workers.get(number)
        if worker is not None:
            worker.accepting = False
        return self._end_rolling()

    def _spent(self, fact: WorkerSpent) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None:
            worker.spent = worker.spent or fact.reason

    def _died(self, fact: WorkerDied, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker, None)
        if worker is None:
            return []
        asked = worker.state is State.DRAINING or worker.fate is Fate.ENDING
        if not (asked and (fact.clean or worker.fate is Fate.ENDING or worker.ready_since is None)):
            self.deaths[_cause(worker, fact)] += 1
        if self._is_successor(worker):
            return self._rolling_failed(worker, worker.unable or f"it died while it started: {fact.cause}", now)
        slot = self._slot_of(worker)
        if slot is not None:
            slot.occupant = None
        if self._ending() or slot is None:
            # One that was still starting has no handler for SIGTERM yet, and nothing to drain.
            crashed = worker.state is State.DRAINING and worker.ready_since is not None and not fact.clean
            notes: list[Command] = [Note(WorkerExited(worker.slot, worker.pid, fact.cause, None))] if crashed else []
            return notes + self._end_rolling()
        return self._vacated(slot, worker, fact, now)

    def _vacated(self, slot: Slot, worker: Worker, fact: WorkerDied, now: float) -> list[Command]:
        """The worker of a slot has died, unasked: who comes next, and when."""
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
        beating = self._beating()
        if not beating:
            self._watch.rest()
            return []
        return [ReadHeartbeats()] if self._watch.look(now, min(worker.timing.hang for worker in beating)) else []

    def _heartbeats_read(self, fact: HeartbeatsRead, now: float) -> list[Command]:
        commands: list[Command] = []
        left = {
            worker.number: worker.timing.hang - fact.ages[worker.number]
            for worker in self._beating()
            if worker.number in fact.ages
        }
        for number in self._watch.judge(left, now):
            worker = self.workers[number]
            worker.become(State.HUNG)
            worker.fate = Fate.HANG
            worker.kill_at = now + DUMP_TIME
            commands += [Note(WorkerHung(worker.slot, worker.pid, fact.ages[number])), Dump(number)]
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

    # --- reload and recycling -----------------------------------------------------------------------------------------

    def generations(self) -> set[int]:
        """Those that a worker may yet be forked of."""
        coming = {self.generation} if self.rolling is not None and self.rolling.purpose is Purpose.RELOAD else set()
        return {self._proven, *(slot.generation for slot in self.slots)} | coming

    def _reload_asked(self, by: str, timing: Timing) -> list[Command]:
        if self.phase is Phase.BOOTING:
            return [Note(ReloadIgnored(by, "the first workers are still starting, with what is there now"))]
        if self._ending():
            leaving = self.phase is Phase.LEAVING
            return [Note(ReloadIgnored(by, "another supervisor serves" if leaving else "the server is stopping"))]
        if self.rolling is not None:
            self.rolling.again = (by, timing)
            return []
        self.generation += 1
        self._timings = {each: self._timings[each] for each in self.generations() & set(self._timings)}
        self._timings[self.generation] = timing
        self.rolling = Rolling(Purpose.RELOAD, [slot.number for slot in self.slots])
        return [Note(Reloading(by, self.generation)), *self._next_successor()]

    def _spent_slot(self) -> Slot | None:
        """The first slot whose worker wants to be recycled."""
        for slot in self.slots:
            if self._is_ready(slot) and slot.occupant is not None and self.workers[slot.occupant].spent:
                return slot
        return None

    def _recycle(self, now: float) -> list[Command]:
        slot = self._spent_slot()
        if slot is None or self.rolling is not None or self.phase is not Phase.SERVING or now < self._recycle_at:
            return []
        assert slot.occupant is not None
        worker = self.workers[slot.occupant]
        self.rolling = Rolling(Purpose.RECYCLE, [slot.number])
        return [Note(Recycling(slot.number, worker.pid, worker.spent)), *self._next_successor()]

    def _next_successor(self) -> list[Command]:
        """Fork for the next slot that needs it; an empty one gets its worker anyway, and that is a new one."""
        rolling = self.rolling
        assert rolling is not None
        while rolling.left:
            number = rolling.left.pop(0)
            if number >= len(self.slots):
                continue
            slot = self.slots[number]
            if rolling.purpose is Purpose.RELOAD and slot.occupant is None:
                slot.generation = self.generation
            elif slot.occupant is not None:
                generation = self.generation if rolling.purpose is Purpose.RELOAD else slot.generation
                worker = self._make_worker(number, generation)
                rolling.successor = worker.number
                return [Spawn(worker.number, number, generation)]
        return self._end_rolling()

    def _end_rolling(self) -> list[Command]:
        """Every slot has its new worker: it is done when the old ones have stopped accepting."""
        rolling = self.rolling
        if rolling is None or rolling.left or rolling.successor is not None:
            return []
        if any(each in self.workers and self.workers[each].accepting for each in rolling.retired):
            return []
        self.rolling = None
        notes: list[Command] = []
        if rolling.purpose is Purpose.RELOAD:
            self._proven = self.generation
            notes.append(Note(Reloaded(self.generation)))
        return notes + (self._reload_asked(*rolling.again) if rolling.again else [])

    def _take_over(self, worker: Worker, now: float) -> list[Command]:
        """The successor is ready: it has the slot, and its predecessor drains."""
        assert self.rolling is not None
        self.rolling.successor = None
        slot = self.slots[worker.slot]
        predecessor = slot.occupant
        slot.occupant = worker.number
        slot.generation = worker.generation
        slot.due = None
        slot.history = History(forks=slot.history.forks)
        if self.rolling.purpose is Purpose.RECYCLE:
            self._recycle_at = now + RECYCLE_PAUSE
        if predecessor is None:
            return self._next_successor()
        self.rolling.retired.add(predecessor)
        return [*self._retire(predecessor, now), *self._next_successor()]

    def _rolling_failed(self, worker: Worker, reason: str, now: float) -> list[Command]:
        """What does not boot never replaces what runs; the rest of it is off."""
        rolling, self.rolling = self.rolling, None
        if self._ending() or rolling is None:
            return []
        slot = self.slots[worker.slot]
        if slot.occupant is None and slot.due is None:
            # Its predecessor died meanwhile, and counted on it.
            slot.due = 0.0
        if rolling.purpose is Purpose.RELOAD:
            return [Note(ReloadFailed(worker.slot, reason))]
        self._recycle_at = now + RECYCLE_RETRY
        notes: list[Command] = [Note(RecycleFailed(worker.slot, reason, RECYCLE_RETRY))]
        return notes + (self._reload_asked(*rolling.again) if rolling.again else [])

    def _is_successor(self, worker: Worker) -> bool:
        return self.rolling is not None and self.rolling.successor == worker.number

    def _successor_of(self, slot: Slot) -> Worker | None:
        if self.rolling is None or self.rolling.successor is None:
            return None
        worker = self.workers[self.rolling.successor]
        return worker if worker.slot == slot.number else None

    # --- scale --------------------------------------------------------------------------------------------------------

    def _scale_asked(self, fact: ScaleAsked, now: float) -> list[Command]:
        if self.phase is not Phase.SERVING:
            return []
        commands: list[Command] = []
        wanted = max(1, len(self.slots) + fact.more)
        while len(self.slots) < wanted:
            self.slots.append(Slot(len(self.slots), due=now, generation=self._proven))
        while len(self.slots) > wanted:
            slot = self.slots.pop()
            successor = self._successor_of(slot)
            if successor is not None and self.rolling is not None:
                self.rolling.successor = None
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
        worker.kill_at = now + worker.timing.drain + STOP_GRACE
        return [Drain(number)]

    # --- leaving to another supervisor --------------------------------------------------------------------------------

    def _handed_over(self, now: float) -> list[Command]:
        """Another supervisor serves the same sockets: ours drain, and nobody is forked any more."""
        if self.phase is not Phase.SERVING:
            return []
        self._begin_end(Phase.LEAVING)
        return self._retire_all(now)

    def _taken_back(self, now: float) -> None:
        """The other supervisor died while ours were draining: they go on draining, and every slot gets a worker."""
        if self.phase is Phase.LEAVING:
            self.phase = Phase.SERVING
            for slot in self.slots:
                slot.occupant, slot.due = None, now

    # --- stop ---------------------------------------------------------------------------------------------------------

    def _ending(self) -> bool:
        return self.phase in (Phase.LEAVING, Phase.STOPPING, Phase.FINISHED)

    def _stop_asked(self, fact: StopAsked, now: float) -> list[Command]:
        # In LEAVING everybody drains already, but nobody has been asked to stop.
        second = self.phase in (Phase.STOPPING, Phase.FINISHED)
        self._begin_end(Phase.STOPPING)
        if second or fact.at_once:
            note: list[Command] = [] if self._at_once else [Note(Stopping(fact.by, True))]
            self._at_once = True
            return [*note, *self._kill_all()]
        return [Note(Stopping(fact.by, False)), *self._retire_all(now)]

    def _begin_end(self, phase: Phase) -> None:
        self.phase = phase
        self.rolling = None
        for slot in self.slots:
            slot.due = None

    def _retire_all(self, now: float) -> list[Command]:
        return [command for worker in list(self.workers.values()) for command in self._retire(worker.number, now)]

    def _give_up(self, outcome: Finish) -> list[Command]:
        self._begin_end(Phase.STOPPING)
        self._at_once = True
        self._outcome = outcome
        return self._kill_all()

    def _kill_all(self) -> list[Command]:
        commands: list[Command] = []
        for worker in list(self.workers.values()):
            worker.fate = worker.fate or Fate.ENDING
            commands += self._kill(worker)
        return commands

    def _kill(self, worker: Worker) -> list[Command]:
        if worker.state is State.KILLED:
            return []
        worker.become(State.KILLED)
        worker.kill_at = None
        return [Kill(worker.number)]

    # --- what is due --------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[Command]:
        return self._overdue(now) + self._wanted(now) + self._recycle(now) + self._look(now)

    def _overdue(self, now: float) -> list[Command]:
        overdue = [w for w in self.workers.values() if w.kill_at is not None and now >= w.kill_at]
        commands: list[Command] = []
        draining = sum(worker.state is State.DRAINING for worker in overdue)
        if draining:
            commands.append(Note(DrainOverdue(draining)))
        for worker in overdue:
            if worker.state is State.STARTING:
                worker.unable = f"not ready after {worker.timing.boot:g} s (--boot-timeout)"
            if worker.state is not State.HUNG:
                worker.fate = Fate.BOOT if worker.state is State.STARTING else Fate.OVERDUE
            commands += self._kill(worker)
        return commands

    def _wanted(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for slot in self.slots:
            if slot.due is not None and now >= slot.due:
                slot.due = None
                worker = self._make_worker(slot.number, slot.generation)
                slot.occupant = worker.number
                commands.append(Spawn(worker.number, slot.number, slot.generation))
        return commands

    def _make_worker(self, slot: int, generation: int) -> Worker:
        worker = Worker(self._next_worker, slot, generation, self._timings[generation])
        self._next_worker += 1
        self.workers[worker.number] = worker
        return worker

    def _finished(self) -> list[Command]:
        if self.phase not in (Phase.LEAVING, Phase.STOPPING) or self.workers:
            return []
        self.phase = Phase.FINISHED
        return [self._outcome]


def _cause(worker: Worker, fact: WorkerDied) -> Cause:
    """What a death counts as: what we did to the worker says more than the signal that it died of."""
    if worker.fate is Fate.HANG:
        return Cause.HANG
    if worker.fate is Fate.OVERDUE:
        return Cause.OVERDUE
    if worker.fate is Fate.BOOT or (worker.ready_since is None and fact.kind is Cause.EXIT):
        return Cause.BOOT
    return fact.kind
