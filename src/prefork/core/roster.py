"""The roster: a reconciler that compares the wanted workers with those there are, and commands the difference.

Pure: facts about workers and the time go in, commands come out. No process, clock or descriptor appears here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..errors import ExitCode
from ..events import (
    CrashLoop,
    ForkFailed,
    LameDuckBegan,
    LeavingSooner,
    Ready,
    ReloadIgnored,
    Scaled,
    ScaleIgnored,
    Stopping,
    WorkerExited,
    WorkerFailedToStart,
    WorkerHung,
)
from . import facts
from .facts import (
    BeginDrain,
    Command,
    DumpStacks,
    EmitEvent,
    ExitCause,
    Fact,
    Failure,
    Finish,
    ReadHeartbeats,
    ReadTraffic,
)
from .fleet import Fleet
from .heartbeats import HangDetector
from .lame_duck import QUIET_TIME, LameDuck
from .restart_policy import Policy, after_death, after_fork, delay
from .rolling_restart import Purpose, RollingRestart, RollingRestarts
from .states import NEXT_PHASES, KillReason, ServerPhase, Slot, Timing, Worker, WorkerState, move

#: Seconds until a fork that failed for lack of a system resource is tried again; the last one repeats.
FORK_RETRY = (0.1, 0.2, 0.5, 1.0)
#: Seconds that a hung worker has to write its stacks.
DUMP_TIME = 0.3


class Roster:
    """Decides which workers run. Facts enter by `apply` only; `next_due` says when to apply TimePassed."""

    def __init__(self, slots: int, timing: Timing, rng: Callable[[], float]) -> None:
        self.phase = ServerPhase.BOOTING
        self.deaths: Counter[ExitCause] = Counter()
        """The deaths of workers that were not asked to end."""
        self._fleet = Fleet(slots, timing)
        self._restarts = RollingRestarts(self._fleet)
        self._hangs = HangDetector()
        self._rng = rng
        self._policy = Policy()
        self._announced = False
        self._at_once = False
        self._left = False
        """It stops after another supervisor has taken over."""
        self._signalled = False
        """A signal has asked for a stop; the next one does not wait for connections."""
        self._lame_duck: tuple[LameDuck, str] | None = None
        """How long it is one, and which request to stop began that."""
        self._outcome = Finish(ExitCode.OK)

    # --- what the supervisor reads ------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[Slot]:
        return self._fleet.slots

    @property
    def workers(self) -> dict[int, Worker]:
        return self._fleet.workers

    @property
    def generation(self) -> int:
        return self._fleet.generation

    @property
    def last_good(self) -> int:
        """The last generation whose workers all became ready."""
        return self._fleet.last_good

    @property
    def rolling(self) -> RollingRestart | None:
        return self._restarts.current

    def reloading(self) -> bool:
        """Return whether a reload is under way, or waits for a worker that is recycled first."""
        rolling = self.rolling
        return rolling is not None and (rolling.purpose is Purpose.RELOAD or rolling.queued_reload is not None)

    def is_stuck(self, now: float) -> bool:
        """Return whether a reload would take the place of the restart that is under way."""
        return self._restarts.is_stuck(now)

    def generations(self) -> set[int]:
        return self._restarts.generations()

    def has_live_workers(self) -> bool:
        """Return whether a worker accepts, or drains while the server stops. Those that drain for days after an upgrade
        say nothing about the server."""
        over = self.phase in (ServerPhase.LEAVING, ServerPhase.FINISHED)
        return not over and bool(self._fleet.beating())

    def accepting(self) -> bool:
        """Return whether a worker accepts, or may do so for another moment."""
        return any(worker.accepting for worker in self.workers.values())

    def refusal(self) -> Failure | None:
        """Return why there can be no reload and no scaling now."""
        if self.phase is ServerPhase.SERVING:
            return None
        if self.phase is ServerPhase.BOOTING:
            return Failure("the first workers are still starting, with the current files")
        if self.phase is ServerPhase.LAME_DUCK:
            return Failure("the server is a lame duck (--drain-delay), and is about to stop")
        return Failure("another supervisor serves" if self.phase is ServerPhase.LEAVING else "the server is stopping")

    def upgrade_refusal(self) -> Failure | None:
        if self.reloading():
            return Failure("a reload is under way")
        if self.phase is ServerPhase.LAME_DUCK:
            return self.refusal()
        return None if self.phase is ServerPhase.SERVING else Failure(f"the server is {self.phase.name.lower()}")

    def drains_at(self) -> float | None:
        """Return when a lame duck begins to drain, unless a connection comes before; None: it is none."""
        return None if self._lame_duck is None else self._lame_duck[0].ends_at()

    def next_due(self, now: float) -> float | None:
        """Return when TimePassed will have something to do; None: not before another fact."""
        times = [slot.due for slot in self.slots if slot.due is not None]
        times += [worker.kill_at for worker in self.workers.values() if worker.kill_at is not None]
        if self._fleet.beating():
            times.append(self._hangs.next_due(now))
        times += [] if self._lame_duck is None else [self._lame_duck[0].next_due()]
        recycle_at = self._restarts.next_due() if self.phase is ServerPhase.SERVING else None
        return min([*times, *([] if recycle_at is None else [recycle_at])], default=None)

    def apply(self, fact: Fact, now: float) -> list[Command]:
        """Return what to do about `fact`. `now` is the time in seconds on a clock that never goes back."""
        if self.phase is ServerPhase.FINISHED:
            # A server that gave up has not failed if its successor serves after all.
            return [Finish(ExitCode.OK)] if isinstance(fact, facts.HandedOver) else []
        commands = self._apply(fact, now) + self._due(now)
        if self.phase is ServerPhase.SERVING:
            commands += self._announce() + self._restarts.report_old_workers_gone()
        return commands + self._finish()

    def _apply(self, fact: Fact, now: float) -> list[Command]:
        match fact:
            case facts.Started():
                for slot in self.slots:
                    slot.due = now
            case facts.Spawned():
                self._spawned(fact, now)
            case facts.SpawnFailed():
                return self._spawn_failed(fact, now)
            case facts.WorkerReady():
                return self._ready(fact.worker_id, now)
            case facts.WorkerUnable():
                self._unable(fact)
            case facts.WorkerWaits():
                if (waiting := self.workers.get(fact.worker_id)) is not None:
                    waiting.missing = fact.missing
            case facts.WorkerStoppedAccepting():
                return self._stopped_accepting(fact.worker_id, now)
            case facts.RecycleRequested():
                self._recycle_requested(fact, now)
            case facts.OldWorkerTooLarge() if (old := self.workers.get(fact.worker_id)) is not None:
                why = f"uses {fact.rss} bytes, beyond twice --max-worker-rss"
                return self._fleet.hurry(old, now, why)
            case facts.WorkerDied():
                return self._died(fact, now)
            case facts.HeartbeatsRead():
                return self._heartbeats_read(fact, now)
            case facts.TrafficRead():
                if self._lame_duck is not None:
                    self._lame_duck[0].on_reading(fact.arrivals, now)
            case facts.StopRequested():
                return self._stop_requested(fact, now)
            case facts.ReloadRequested():
                return self._reload_requested(fact, now)
            case facts.ScaleRequested():
                return self._scale_requested(fact, now)
            case facts.HandedOver():
                return self._handed_over(now)
            case facts.SuccessorRolledBack():
                self._successor_rolled_back(now)
            case facts.TimePassed():
                pass
        return []

    # --- the life of a worker -----------------------------------------------------------------------------------------

    def _spawned(self, fact: facts.Spawned, now: float) -> None:
        worker = self.workers[fact.worker_id]
        worker.pid = fact.pid
        worker.spawned_at = now
        worker.become(WorkerState.STARTING)
        worker.kill_at = now + worker.timing.boot
        if worker.slot < len(self.slots) and not self._restarts.is_successor(worker):
            slot = self.slots[worker.slot]
            slot.history = after_fork(slot.history, now, self._policy)
            slot.fork_failures = 0

    def _spawn_failed(self, fact: facts.SpawnFailed, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker_id)
        if self._restarts.is_successor(worker):
            return self._restarts.on_successor_failed(worker, f"it could not be forked: {fact.reason}", now)
        slot = self.slots[worker.slot]
        slot.occupant = None
        slot.due = now + FORK_RETRY[min(slot.fork_failures, len(FORK_RETRY) - 1)]
        slot.fork_failures += 1
        # One line, however long the shortage lasts.
        return [EmitEvent(ForkFailed(slot.number, fact.reason))] if slot.fork_failures == 1 else []

    def _ready(self, worker_id: int, now: float) -> list[Command]:
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.STARTING:
            return []
        worker.become(WorkerState.READY)
        worker.accepting = True
        worker.ready_since = now
        worker.kill_at = None
        if self.phase is ServerPhase.BOOTING:
            self._enter(ServerPhase.SERVING)
        return self._restarts.on_successor_ready(worker, now) if self._restarts.is_successor(worker) else []

    def _announce(self) -> list[Command]:
        """Report once that every slot has a worker that accepts; also if the last slow one was scaled away."""
        if self._announced or not all(map(self._fleet.is_ready, self.slots)):
            return []
        self._announced = True
        return [EmitEvent(Ready(len(self.slots))), facts.AnnounceReady()]

    def _unable(self, fact: facts.WorkerUnable) -> None:
        worker = self.workers.get(fact.worker_id)
        if worker is not None and worker.state is WorkerState.STARTING:
            worker.start_error = fact.reason

    def _stopped_accepting(self, worker_id: int, now: float) -> list[Command]:
        worker = self.workers.get(worker_id)
        if worker is not None:
            worker.accepting = False
        return self._restarts.end_if_done(now)

    def _recycle_requested(self, fact: facts.RecycleRequested, now: float) -> None:
        worker = self.workers.get(fact.worker_id)
        if worker is not None and worker.recycle_reason is None:
            worker.recycle_reason, worker.recycle_since = fact.reason, now

    def _died(self, fact: facts.WorkerDied, now: float) -> list[Command]:
        worker = self.workers.pop(fact.worker_id, None)
        if worker is None:
            return []
        shut_down = worker.kill_reason is KillReason.SHUTDOWN
        draining = worker.state is WorkerState.DRAINING
        # A worker that was still starting has no handler for SIGTERM yet, and nothing to drain.
        if not (shut_down or (draining and (fact.clean or worker.ready_since is None))):
            self.deaths[_cause(worker, fact)] += 1
        if self._restarts.is_successor(worker):
            reason = worker.start_error or f"it died while starting: {fact.description}"
            return self._restarts.on_successor_failed(worker, reason, now)
        slot = self._fleet.slot_of(worker)
        if slot is not None:
            slot.occupant = None
        if slot is not None and not self._ending():
            return self._slot_emptied(slot, worker, fact, now)
        crashed = draining and worker.ready_since is not None and not fact.clean
        report = [EmitEvent(_exited(worker, fact, None))] if crashed else []
        return [*report, *self._restarts.end_if_done(now)]

    def _slot_emptied(self, slot: Slot, worker: Worker, fact: facts.WorkerDied, now: float) -> list[Command]:
        """Decide when a worker that died unasked is replaced, or give up."""
        uptime = None if worker.ready_since is None else now - worker.ready_since
        slot.history = after_death(slot.history, uptime, self._rng(), self._policy)
        slot.exits += 1
        slot.last_exit = _describe(worker, fact)
        if self.phase is ServerPhase.BOOTING:
            died = f"worker {slot.number} (pid {worker.pid}) died while starting: {fact.description}"
            return self._give_up(Finish(ExitCode.SERVICE, worker.start_error or died), now)
        commands: list[Command] = []
        if worker.start_error is not None:
            commands.append(EmitEvent(WorkerFailedToStart(slot.number, worker.start_error)))
        if self._must_give_up():
            commands.append(EmitEvent(_exited(worker, fact, None)))
            commands.append(EmitEvent(CrashLoop(slot.history.failures)))
            reason = f"no worker accepts, and in every slot {self._policy.max_failures} or more have died in a row"
            return commands + self._give_up(Finish(ExitCode.CRASH_LOOP, reason), now)
        seconds = delay(slot.history, now, self._policy)
        if self._restarts.successor_of(slot) is None:
            slot.due = now + seconds
        commands.append(EmitEvent(_exited(worker, fact, seconds)))
        return commands

    def _must_give_up(self) -> bool:
        """Return whether no worker accepts and every slot is in a crash loop."""
        if any(worker.state is WorkerState.READY for worker in self.workers.values()):
            return False
        return all(slot.history.failures >= self._policy.max_failures for slot in self.slots)

    # --- hangs --------------------------------------------------------------------------------------------------------

    def _check_heartbeats(self, now: float) -> list[Command]:
        beating = self._fleet.beating()
        if not beating:
            self._hangs.reset()
            return []
        return [ReadHeartbeats()] if self._hangs.due(now, min(worker.timing.hang for worker in beating)) else []

    def _heartbeats_read(self, fact: facts.HeartbeatsRead, now: float) -> list[Command]:
        ages = fact.ages
        left = {each.id: each.timing.hang - ages[each.id] for each in self._fleet.beating() if each.id in ages}
        commands: list[Command] = []
        for worker_id in self._hangs.check(left, now):
            worker = self.workers[worker_id]
            worker.become(WorkerState.HUNG)
            worker.kill_reason = KillReason.HANG
            worker.kill_at = now + DUMP_TIME
            commands += [EmitEvent(WorkerHung(worker.slot, worker.pid, ages[worker_id])), DumpStacks(worker_id)]
        return commands

    # --- reload and scale ---------------------------------------------------------------------------------------------

    def _reload_requested(self, fact: facts.ReloadRequested, now: float) -> list[Command]:
        refusal = self.refusal()
        if refusal is not None:
            return [EmitEvent(ReloadIgnored(fact.by, refusal.reason))]
        return self._restarts.reload(fact, now)

    def _scale_requested(self, fact: facts.ScaleRequested, now: float) -> list[Command]:
        refusal = self.refusal()
        if refusal is not None:
            return [EmitEvent(ScaleIgnored(fact.by, refusal.reason))]
        wanted = max(1, fact.workers)
        commands: list[Command] = [EmitEvent(Scaled(fact.by, wanted))]
        while len(self.slots) < wanted:
            slot = Slot(len(self.slots), generation=self._fleet.last_good)
            self.slots.append(slot)
            commands += self._restarts.on_slot_added(slot, now)
        # All at once, otherwise the next slot to be removed would get the successor of the one before it.
        removed = self.slots[wanted:]
        del self.slots[wanted:]
        for slot in removed:
            commands += self._restarts.on_slot_removed(slot, now)
            if slot.occupant is not None:
                commands += self._fleet.retire(slot.occupant, now)
        return commands

    # --- an upgrade ---------------------------------------------------------------------------------------------------

    def _handed_over(self, now: float) -> list[Command]:
        """Drain every worker and fork no more, because another supervisor serves the same sockets."""
        if self.phase is ServerPhase.STOPPING:
            self._outcome = Finish(ExitCode.OK)
        if self.phase is not ServerPhase.SERVING:
            return []
        self._begin_end(ServerPhase.LEAVING)
        return self._fleet.retire_all(now)

    def _successor_rolled_back(self, now: float) -> None:
        """Give every slot a new worker, because the other supervisor died. Draining workers go on draining."""
        if self.phase is ServerPhase.LEAVING:
            self._enter(ServerPhase.SERVING)
            for slot in self.slots:
                slot.occupant, slot.due = None, now

    # --- the end ------------------------------------------------------------------------------------------------------

    def _ending(self) -> bool:
        return self.phase in (ServerPhase.LEAVING, ServerPhase.STOPPING, ServerPhase.FINISHED)

    def _stop_requested(self, fact: facts.StopRequested, now: float) -> list[Command]:
        # Only signals, as a second Ctrl-C: `prefork stop` may be repeated, or follow a stop of the service manager.
        insists = fact.signal and self._signalled
        self._signalled = self._signalled or fact.signal
        at_once = insists or fact.at_once
        delay = self._fleet.timing.drain_delay
        # Before READY no balancer was told of the server, and while another supervisor serves nothing comes here.
        if self.phase is ServerPhase.SERVING and self._announced and delay.seconds and not at_once:
            self._enter(ServerPhase.LAME_DUCK)
            self._lame_duck = LameDuck(delay, now), fact.by
            return [EmitEvent(LameDuckBegan(fact.by, delay.seconds, QUIET_TIME if delay.until_quiet else 0))]
        return self._stop(fact.by, at_once, now) if at_once or self._lame_duck is None else []

    def _swim_on(self, now: float) -> list[Command]:
        """Drain when the delay is over; read the traffic until then if it depends on that."""
        if self._lame_duck is None:
            return []
        lame_duck, by = self._lame_duck
        # One that is about to be forked could not be told to drain; the next fact says that it was.
        forking = any(worker.state is WorkerState.FORKING for worker in self.workers.values())
        if lame_duck.is_over(now) and not forking:
            return self._stop(by, False, now)
        return [ReadTraffic()] if lame_duck.wants_reading(now) else []

    def _stop(self, by: str, at_once: bool, now: float) -> list[Command]:
        first = self.phase is not ServerPhase.STOPPING
        # Another supervisor serves: to a service manager, `Stopping` would be the end of the service.
        event = LeavingSooner if self.phase is ServerPhase.LEAVING or self._left else Stopping
        self._left = event is LeavingSooner
        self._begin_end(ServerPhase.STOPPING)
        if at_once:
            report = [] if self._at_once else [EmitEvent(event(by, True))]
            self._at_once = True
            return [BeginDrain(), *report, *self._fleet.kill_all()]
        return [BeginDrain(), EmitEvent(event(by, False)), *self._fleet.stop_all(now)] if first else []

    def _give_up(self, outcome: Finish, now: float) -> list[Command]:
        """End with a failure. Workers that drain go on, as at a stop, because their connections are well."""
        self._begin_end(ServerPhase.STOPPING)
        self._outcome = outcome
        left = [worker for worker in self.workers.values() if worker.state is not WorkerState.DRAINING]
        kills = [command for worker in left for command in self._fleet.kill(worker, KillReason.SHUTDOWN)]
        return kills + self._fleet.hurry_all(now)

    def _begin_end(self, phase: ServerPhase) -> None:
        self._enter(phase)
        self._lame_duck = None
        self._restarts.cancel()
        for slot in self.slots:
            slot.due = None

    def _enter(self, phase: ServerPhase) -> None:
        self.phase = move("the server", NEXT_PHASES, self.phase, phase)

    def _due(self, now: float) -> list[Command]:
        # First, so that no worker is forked any more when the server drains.
        commands = self._swim_on(now) + self._fleet.kill_overdue(now)
        for slot in self.slots:
            if slot.due is not None and now >= slot.due:
                commands += self._fleet.fill(slot)
        if self.phase is ServerPhase.SERVING:
            commands += self._restarts.call_off(now)
            commands += self._restarts.recycle(now)
        return commands + self._check_heartbeats(now)

    def _finish(self) -> list[Command]:
        if self.phase not in (ServerPhase.LEAVING, ServerPhase.STOPPING) or self.workers:
            return []
        self._enter(ServerPhase.FINISHED)
        return [self._outcome]


#: The option by which the supervisor killed a worker.
_KILLED_BY = {KillReason.HANG: "--hang-timeout", KillReason.BOOT_TIMEOUT: "--boot-timeout"}


def _exited(worker: Worker, fact: facts.WorkerDied, restart_in: float | None) -> WorkerExited:
    return WorkerExited(worker.slot, worker.pid, _describe(worker, fact), restart_in, fact.connections)


def _describe(worker: Worker, fact: facts.WorkerDied) -> str:
    """Return how a worker has died, and the option by which it was killed."""
    option = None if worker.kill_reason is None else _KILLED_BY.get(worker.kill_reason)
    number, _, rest = fact.description.partition(" (SIGKILL)")
    return fact.description if option is None or rest else f"{number} (killed by {option})"


def _cause(worker: Worker, fact: facts.WorkerDied) -> ExitCause:
    """Return what a death counts as. Why the supervisor killed the worker says more than the signal it died of."""
    if worker.kill_reason is KillReason.HANG:
        return ExitCause.HANG
    if worker.kill_reason is KillReason.DRAIN_TIMEOUT:
        return ExitCause.DRAIN_TIMEOUT
    never_ready = worker.ready_since is None and fact.cause is ExitCause.EXIT
    return ExitCause.BOOT if never_ready or worker.kill_reason is KillReason.BOOT_TIMEOUT else fact.cause
