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
    ForkFailed,
    Ready,
    ReloadIgnored,
    Scaled,
    ScaleIgnored,
    Stopping,
    WorkerExited,
    WorkerFailedToStart,
    WorkerHung,
)
from .facts import (
    AnnounceReady,
    Cause,
    Command,
    Dump,
    EmitEvent,
    Fact,
    Finish,
    HandedOver,
    HeartbeatsRead,
    ReadHeartbeats,
    RecycleRequested,
    ReloadAsked,
    ScaleAsked,
    Spawned,
    SpawnFailed,
    Started,
    StopAsked,
    SuccessorRolledBack,
    TimePassed,
    WorkerDied,
    WorkerDraining,
    WorkerReady,
    WorkerUnable,
)
from .fleet import Fleet
from .heartbeats import HangDetector
from .replacement import Replacement
from .restart_policy import Policy, after_death, after_fork, delay
from .worker_state import KillReason, Phase, Purpose, RollingRestart, Slot, State, Timing, Worker

#: Seconds between attempts of a fork that the system refuses.
FORK_RETRY = (0.1, 0.2, 0.5, 1.0)
#: Seconds that a hung worker has to tell its stacks.
DUMP_TIME = 0.3


class Roster:
    """Decides who should be running. `apply` is the only way in; `next_due` says when to come back at last."""

    def __init__(
        self,
        slots: int,
        timing: Timing,
        dice: Callable[[], float],
        policy: Policy | None = None,
    ) -> None:
        self.phase = Phase.BOOTING
        self.deaths: Counter[Cause] = Counter()
        """How workers ended that were not asked to, by the kind of their cause."""
        self._fleet = Fleet(slots, timing)
        self._replacement = Replacement(self._fleet)
        self._watch = HangDetector()
        self._dice = dice
        self._policy = Policy() if policy is None else policy
        self._announced = False
        self._at_once = False
        self._outcome = Finish(ExitCode.OK)

    # --- what can be seen of it ---------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[Slot]:
        """The places, by number."""
        return self._fleet.slots

    @property
    def workers(self) -> dict[int, Worker]:
        """Everybody who has not been reaped, by number."""
        return self._fleet.workers

    @property
    def generation(self) -> int:
        """The last one that a reload has begun with."""
        return self._fleet.generation

    @property
    def rolling(self) -> RollingRestart | None:
        """The replacement that is under way."""
        return self._replacement.rolling

    def reloading(self) -> bool:
        """Whether a reload is under way, or waits for a worker that is recycled first."""
        rolling = self.rolling
        return rolling is not None and (rolling.purpose is Purpose.RELOAD or rolling.again is not None)

    def generations(self) -> set[int]:
        """Those that a worker may yet be forked of."""
        return self._replacement.generations()

    def serving(self) -> bool:
        """Whether a worker accepts, or the last ones are finishing what they have."""
        return self.phase is not Phase.FINISHED and bool(self._fleet.beating())

    def accepting(self) -> bool:
        """Whether a worker accepts, or may do for another moment."""
        return any(worker.accepting for worker in self.workers.values())

    def next_due(self, now: float) -> float | None:
        """When `TimePassed` will have something to do; None: not before another fact."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        times += [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if self._fleet.beating():
            times.append(self._watch.due(now))
        recycle_at = self._replacement.next_due() if self.phase is Phase.SERVING else None
        return min([*times, *([] if recycle_at is None else [recycle_at])], default=None)

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
            case RecycleRequested():
                self._spent(fact, now)
            case WorkerDied():
                commands = self._died(fact, now)
            case HeartbeatsRead():
                commands = self._heartbeats_read(fact, now)
            case StopAsked():
                commands = self._stop_asked(fact, now)
            case ReloadAsked():
                commands = self._reload_asked(fact)
            case ScaleAsked():
                commands = self._scale_asked(fact, now)
            case HandedOver():
                commands = self._handed_over(now)
            case SuccessorRolledBack():
                self._successor_rolled_back(now)
            case TimePassed():
                pass
        return commands + self._due(now) + self._announce() + self._finished()

    # --- a worker's life ----------------------------------------------------------------------------------------------

    def _spawned(self, fact: Spawned, now: float) -> list[Command]:
        worker = self.workers[fact.worker]
        worker.pid = fact.pid
        worker.become(State.STARTING)
        worker.kill_at = now + worker.timing.boot
        if worker.slot < len(self.slots) and not self._replacement.is_successor(worker):
            slot = self.slots[worker.slot]
            slot.history = after_fork(slot.history, now, self._policy)
            slot.refused = 0
        return []

    def _spawn_failed(self, fact: SpawnFailed, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker)
        if self._replacement.is_successor(worker):
            return self._replacement.successor_failed(worker, f"it cannot be forked: {fact.reason}", now)
        slot = self.slots[worker.slot]
        slot.occupant = None
        slot.due = now + FORK_RETRY[min(slot.refused, len(FORK_RETRY) - 1)]
        slot.refused += 1
        # One line, however long the shortage lasts.
        return [EmitEvent(ForkFailed(slot.number, fact.reason))] if slot.refused == 1 else []

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
        return self._replacement.successor_ready(worker, now) if self._replacement.is_successor(worker) else []

    def _announce(self) -> list[Command]:
        """Once, when every slot has a worker that accepts; which is so also when a slow one is not wanted any more."""
        if self._announced or self.phase is not Phase.SERVING or not all(map(self._fleet.is_ready, self.slots)):
            return []
        self._announced = True
        return [EmitEvent(Ready(len(self.slots))), AnnounceReady(len(self.slots))]

    def _unable(self, fact: WorkerUnable) -> list[Command]:
        worker = self.workers.get(fact.worker)
        if worker is not None and worker.state is State.STARTING:
            worker.unable = fact.reason
        return []

    def _draining(self, number: int) -> list[Command]:
        worker = self.workers.get(number)
        if worker is not None:
            worker.accepting = False
        return self._replacement.retired_one_stopped()

    def _spent(self, fact: RecycleRequested, now: float) -> None:
        worker = self.workers.get(fact.worker)
        if worker is not None and not worker.spent:
            worker.spent, worker.spent_since = fact.reason, now

    def _died(self, fact: WorkerDied, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker, None)
        if worker is None:
            return []
        asked = worker.state is State.DRAINING or worker.fate is KillReason.ENDING
        if not (asked and (fact.clean or worker.fate is KillReason.ENDING or worker.ready_since is None)):
            self.deaths[_cause(worker, fact)] += 1
        if self._replacement.is_successor(worker):
            return self._replacement.successor_failed(
                worker, worker.unable or f"it died while it started: {fact.cause}", now
            )
        slot = self._fleet.slot_of(worker)
        if slot is not None:
            slot.occupant = None
        if self._ending() or slot is None:
            # One that was still starting has no handler for SIGTERM yet, and nothing to drain.
            crashed = worker.state is State.DRAINING and worker.ready_since is not None and not fact.clean
            notes: list[Command] = (
                [EmitEvent(WorkerExited(worker.slot, worker.pid, fact.cause, None))] if crashed else []
            )
            return notes + self._replacement.retired_one_stopped()
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
            commands.append(EmitEvent(WorkerFailedToStart(slot.number, worker.unable)))
        if self._hopeless():
            commands.append(EmitEvent(WorkerExited(slot.number, worker.pid, fact.cause, None)))
            commands.append(EmitEvent(CrashLoop(slot.history.failures)))
            reason = f"no worker is left, and each one died {self._policy.patience} times or more in a row"
            return commands + self._give_up(Finish(ExitCode.CRASH_LOOP, reason))
        seconds = delay(slot.history, now, self._policy)
        if self._replacement.successor_of(slot) is None:
            slot.due = now + seconds
        commands.append(EmitEvent(WorkerExited(slot.number, worker.pid, fact.cause, seconds)))
        return commands

    def _hopeless(self) -> bool:
        """While one worker serves, or a slot still has credit, there is something to hope for."""
        if any(worker.state is State.READY for worker in self.workers.values()):
            return False
        return all(slot.history.failures >= self._policy.patience for slot in self.slots)

    # --- hangs --------------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> list[Command]:
        beating = self._fleet.beating()
        if not beating:
            self._watch.rest()
            return []
        return [ReadHeartbeats()] if self._watch.look(now, min(worker.timing.hang for worker in beating)) else []

    def _heartbeats_read(self, fact: HeartbeatsRead, now: float) -> list[Command]:
        commands: list[Command] = []
        left = {
            worker.number: worker.timing.hang - fact.ages[worker.number]
            for worker in self._fleet.beating()
            if worker.number in fact.ages
        }
        for number in self._watch.judge(left, now):
            worker = self.workers[number]
            worker.become(State.HUNG)
            worker.fate = KillReason.HANG
            worker.kill_at = now + DUMP_TIME
            commands += [EmitEvent(WorkerHung(worker.slot, worker.pid, fact.ages[number])), Dump(number)]
        return commands

    # --- reload -------------------------------------------------------------------------------------------------------

    def obstacle(self) -> str:
        """Why nothing can be replaced, or scaled, now; "" if it can."""
        return {
            Phase.BOOTING: "the first workers are still starting, with what is there now",
            Phase.SERVING: "",
            Phase.LEAVING: "another supervisor serves",
        }.get(self.phase, "the server is stopping")

    def _reload_asked(self, fact: ReloadAsked) -> list[Command]:
        why = self.obstacle()
        return [EmitEvent(ReloadIgnored(fact.by, why))] if why else self._replacement.reload(fact.by, fact.timing)

    # --- scale --------------------------------------------------------------------------------------------------------

    def _scale_asked(self, fact: ScaleAsked, now: float) -> list[Command]:
        why = self.obstacle()
        if why:
            return [EmitEvent(ScaleIgnored(fact.by, why))]
        commands: list[Command] = []
        wanted = max(1, len(self.slots) + fact.more)
        while len(self.slots) < wanted:
            slot = Slot(len(self.slots), generation=self._fleet.proven)
            self.slots.append(slot)
            commands += self._replacement.slot_added(slot, now)
        # All of them first: or one that goes next would be given the successor of the one before.
        removed = self.slots[wanted:]
        del self.slots[wanted:]
        for slot in removed:
            commands += self._replacement.slot_removed(slot, now)
            if slot.occupant is not None:
                commands += self._fleet.retire(slot.occupant, now)
        return [EmitEvent(Scaled(fact.by, wanted)), *commands]

    # --- leaving to another supervisor --------------------------------------------------------------------------------

    def _handed_over(self, now: float) -> list[Command]:
        """Another supervisor serves the same sockets: ours drain, and nobody is forked any more."""
        if self.phase is not Phase.SERVING:
            return []
        self._begin_end(Phase.LEAVING)
        return self._fleet.retire_all(now)

    def _successor_rolled_back(self, now: float) -> None:
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
            note: list[Command] = [] if self._at_once else [EmitEvent(Stopping(fact.by, True))]
            self._at_once = True
            return [*note, *self._fleet.kill_all()]
        return [EmitEvent(Stopping(fact.by, False)), *self._fleet.retire_all(now)]

    def _begin_end(self, phase: Phase) -> None:
        self.phase = phase
        self._replacement.call_off()
        for slot in self.slots:
            slot.due = None

    def _give_up(self, outcome: Finish) -> list[Command]:
        """Nobody is forked any more. Those that drain have connections that are none the worse: they may end."""
        self._begin_end(Phase.STOPPING)
        self._outcome = outcome
        left = [worker for worker in self.workers.values() if worker.state is not State.DRAINING]
        return [command for worker in left for command in self._fleet.kill(worker, KillReason.ENDING)]

    # --- what is due --------------------------------------------------------------------------------------------------

    def _due(self, now: float) -> list[Command]:
        commands = self._fleet.kill_overdue(now)
        for slot in self.slots:
            if slot.due is not None and now >= slot.due:
                commands += self._fleet.fill(slot)
        if self.phase is Phase.SERVING:
            commands += self._replacement.recycle(now)
        return commands + self._look(now)

    def _finished(self) -> list[Command]:
        if self.phase not in (Phase.LEAVING, Phase.STOPPING) or self.workers:
            return []
        self.phase = Phase.FINISHED
        return [self._outcome]


def _cause(worker: Worker, fact: WorkerDied) -> Cause:
    """What a death counts as: what we did to the worker says more than the signal that it died of."""
    if worker.fate is KillReason.HANG:
        return Cause.HANG
    if worker.fate is KillReason.OVERDUE:
        return Cause.OVERDUE
    if worker.fate is KillReason.BOOT or (worker.ready_since is None and fact.kind is Cause.EXIT):
        return Cause.BOOT
    return fact.kind
