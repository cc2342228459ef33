"""The supervisor: a loop around decisions, which turns descriptors into facts and commands into what its parts do.

No event loop, no threads, no decisions, and nothing of the service is ever imported here. It holds what must outlive
every worker (the sockets, the TLS context) by keeping whoever made them alive; it never touches them.
"""

from __future__ import annotations

import os
import random
import select
import signal
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from .._version import __version__
from ..core import upgrade
from ..core.facts import (
    AnnounceReady,
    Command,
    Drain,
    Dump,
    EmitEvent,
    Fact,
    Finish,
    HandedOver,
    Kill,
    ReadHeartbeats,
    ReloadAsked,
    ScaleAsked,
    Spawn,
    SpawnFailed,
    Started,
    StopAsked,
    SuccessorRolledBack,
    TimePassed,
    WorkerDied,
)
from ..core.fleet import STOP_GRACE
from ..core.messages import ReadyMessage, StoppingMessage, UnableMessage
from ..core.roster import Roster
from ..core.worker_state import Phase, State
from ..errors import ExitCode, PreforkError, place_of, reason_of
from ..events import (
    Emit,
    Event,
    Reloaded,
    ReloadIgnored,
    Reloading,
    ScaleIgnored,
    SupervisorFailed,
    SystemFailed,
    TookOver,
    UpgradeFailed,
)
from ..system.descendants import AdoptedProcesses
from ..system.file_ownership import FileOwnership
from ..system.fork_context import ForkContext
from ..system.processes import REAP_INTERVAL, System
from ..system.scoreboard import FleetSetting
from ..system.signals import SignalQueue
from ..text import escape_controls
from .control_commands import ControlCommands
from .control_server import ControlSocket
from .generations import Generations, GenerationSpec, Resources
from .status import describe_roster
from .upgrade import Predecessor, Successor
from .workers import DUMP_SIGNAL, ChildStarted, Workers

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_HEEDED = (
    *_STOP,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
#: poll(2) takes its milliseconds as an int: a drain timeout of a month would not fit.
LONGEST_WAIT = 3600.0
#: Seconds for which orphans are killed at the end, and those that come to us as they die.
ORPHANS_GRACE = 2.0
#: Seconds until the next try where a system call of our own failed.
REST = 0.1
#: How much longer than a worker a new supervisor may take to start: it imports, binds and reads certificates.
UPGRADE_GRACE = 15.0


class Supervisor:
    """Keeps workers running as `plan` says until it is told to stop. Main thread only.

    `run` returns the outcome in the supervisor, a `ForkContext` in each worker. The provider is patted twice in every
    `watchdog` seconds, as long as a worker serves. With a `predecessor`, everything is that one's until ours are ready.
    """

    def __init__(
        self,
        plan: GenerationSpec,
        provider: Resources,
        emit: Emit,
        system: System,
        control: ControlSocket | None = None,
        watchdog: float | None = None,
        predecessor: Predecessor | None = None,
        leave_daemons: bool = False,
    ) -> None:
        self._roster = Roster(plan.workers, plan.timing, random.random)
        self._plans = Generations(plan)
        self._wanted = plan.workers
        """How many workers the settings ask for, as of the last reload that worked."""
        self._reloaded: int | None = None
        """The generation of a reload that has just worked; what follows from that is still to be done."""
        self._provider = provider
        self._emit = emit
        self._system = system
        self._answers = None if control is None else ControlCommands(control, self)
        self._watchdog = watchdog
        self._leave_daemons = leave_daemons
        self._patted = 0.0
        self._predecessor = predecessor
        self._took_over = False
        self._listening = True
        self._upgrade = upgrade.Upgrade()
        self._successor = Successor(system, lambda channel: provider.export(channel, len(self._roster.slots)))
        self._started = system.monotonic()
        self._outcome: Finish | None = None

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        self._workers = Workers(self._system, self._emit, self._wanted)
        self._publish_limits(self._plans.newest())
        # Under nohup it is ignored, so that the end of a terminal does not end the program. Here it ends nothing.
        self._signals = SignalQueue(_HEEDED, regardless=(signal.SIGHUP,))
        self._orphans = AdoptedProcesses(self._system)
        self._system.close_in_child(*self._signals.descriptors())
        if self._predecessor is not None:
            self._system.close_in_child(self._predecessor)
            self._listen_for_commands(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return
        if kind is not None:
            self._fail("it has failed; its log says why")
        self._workers.close()
        if not self._leave_daemons:
            self._orphans.end(self._ours(), ORPHANS_GRACE)
        self._successor.close()
        if self._predecessor is not None:
            self._predecessor.close()
        if self._answers is not None:
            self._answers.control.close()
        # The process is at its end: one more Ctrl-C asks for nothing new, and shall not leave a traceback.
        self._signals.take()
        self._signals.release(ignoring=_STOP if kind is None else ())

    def run(self) -> Finish | ForkContext:
        """Supervise until no worker is wanted any more."""
        try:
            self._apply(Started())
            while self._outcome is None or self._upgrade.waits():
                try:
                    self._turn(self._wait())
                except (OSError, MemoryError) as exc:
                    self._survive(exc)
        except ChildStarted as forked:
            return forked.seat
        if self._outcome.reason:
            self._fail(self._outcome.reason)
        return self._outcome

    def _survive(self, exc: OSError | MemoryError) -> None:
        """A call failed that should not. Before the first worker is ready that ends the start, with this reason; after
        it, what serves goes on, and so do we: with a line, a rest, and another try."""
        if self._roster.phase is Phase.BOOTING:
            raise exc
        self._emit(SystemFailed(escape_controls(reason_of(exc)), place_of(exc)))
        self._system.rest(REST)

    def plan_of(self, seat: ForkContext) -> GenerationSpec:
        """In a worker: what its generation is to be."""
        return self._plans.of(seat.generation)

    def _fail(self, reason: str) -> None:
        """We end without having been asked to. Whoever was there before us, and still is, serves in our place, and
        needs the files that we would remove."""
        if self._predecessor is not None and not self._predecessor.gone:
            self._predecessor.tell(UnableMessage(reason))
            self._provider.set_ownership(FileOwnership.PROVISIONAL)

    # --- one turn of the loop -----------------------------------------------------------------------------------------

    def _wait(self) -> set[int]:
        """Until a signal, a message or a death comes, or something is due; the descriptors that are ready."""
        poll = select.poll()
        for descriptor in self._signals.readable():
            poll.register(descriptor, select.POLLIN)
        now = self._system.monotonic()
        for part in self._parts():
            for fd, interest in part.interests(now).items():
                poll.register(fd, interest)
        times = [due for due in self._times(now) if due is not None]
        if self._workers.must_poll_exit() or self._successor.must_poll_exit():
            times.append(now + REAP_INTERVAL)
        seconds = min(max(0.0, min(times) - now), LONGEST_WAIT) if times else None
        try:
            # Rounded up, or the last millisecond would be spun away.
            return {fd for fd, _ in poll.poll(None if seconds is None else int(seconds * 1000) + 1)}
        except OSError as exc:
            # No memory, or more descriptors than the limit of open ones is by now (EINVAL): all are looked at, as none
            # of them blocks.
            self._survive(exc)
            return {fd for part in self._parts() for fd in part.interests(now)}

    def _parts(self) -> Iterator[Workers | Successor | Predecessor | ControlSocket]:
        yield self._workers
        yield self._successor
        if self._predecessor is not None:
            yield self._predecessor
        if self._answers is not None:
            yield self._answers.control

    def _times(self, now: float) -> Iterator[float | None]:
        yield self._roster.next_due(now)
        yield self._upgrade.next_due()
        yield self._workers.next_due(now)
        if self._predecessor is not None:
            yield self._predecessor.next_due(now)
        if self._answers is not None:
            yield self._answers.control.next_due(now)
        if self._watchdog is not None:
            yield self._patted + self._watchdog / 2

    def _turn(self, ready: set[int]) -> None:
        for number, _ in self._signals.take():
            self._signal_came(number)
        for fact in self._workers.take(ready, self._system.monotonic()):
            self._apply(fact)
            if isinstance(fact, WorkerDied) and not fact.clean and not self._ending():
                self._repair_listeners()
        for news in self._successor.take():
            self._apply_upgrade(news)
        if self._predecessor is not None and not self._predecessor.gone:
            self._predecessor.take()
            self._inherit()
        if self._answers is not None:
            self._answers.serve(ready, self._system.monotonic())
        self._notify_watchdog()
        self._apply(TimePassed())
        self._apply_upgrade(upgrade.TimePassed())
        self._retain_plans()
        self._end_listening()
        self._orphans.reap(self._ours())

    def _signal_came(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in _STOP:
            self.stop(name, at_once=number == signal.SIGQUIT)
        elif number == signal.SIGHUP:
            self.start_reload(name)
        elif number == signal.SIGUSR1:
            self._provider.reopen_logs()
            self._workers.signal_all(signal.SIGUSR1)
        elif number == signal.SIGUSR2:
            self.start_upgrade(name)
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self.scale(name, max(1, len(self._roster.slots) + (1 if number == signal.SIGTTIN else -1)))

    def _notify_watchdog(self) -> None:
        """The manager's watchdog is for the service, not for this process: if no worker serves, it may bite."""
        now = self._system.monotonic()
        if self._watchdog is not None and now >= self._patted + self._watchdog / 2:
            self._patted = now
            if self._roster.serving():
                self._provider.notify_watchdog()

    # --- what can be asked for ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How it is, as plain values."""
        before = self._predecessor
        return {
            "version": __version__,
            "pid": self._pid,
            "predecessor": None if before is None or before.gone else before.pid,
            "upgrading": self.upgrading(),
            "uptime": round(self._system.monotonic() - self._started, 3),
            "listeners": list(self._plans.newest().listeners),
            **describe_roster(self._roster, self._workers.rows(), self._workers.heartbeats().ages),
        }

    def start_reload(self, by: str) -> None:
        """Replace all workers, with what the files say now."""
        why = self._roster.obstacle()
        if not why and self._upgrade.step is not upgrade.Step.IDLE:
            why = "an upgrade is under way"
        plan = why or self._renew()
        if isinstance(plan, str):
            self._note(ReloadIgnored(by, plan))
            return
        self._plans.ask(plan)
        self._apply(ReloadAsked(by, plan.timing))

    def _renew(self) -> GenerationSpec | str:
        """What is to be, or why it cannot."""
        try:
            plan = self._provider.rebuild()
        except PreforkError as exc:
            return str(exc)
        except (OSError, MemoryError) as exc:
            return f"its settings cannot be used: {escape_controls(reason_of(exc))}"
        except Exception as exc:
            # Whatever the files hold: it must not end what serves.
            self._emit(SupervisorFailed("reload", escape_controls(repr(exc)), traceback.format_exc()))
            return f"its settings cannot be used: {escape_controls(repr(exc))}"
        return self._too_many(plan.workers) or plan

    def _repair_listeners(self) -> None:
        """A worker has died: what it shared with the others may be spoiled for them, too."""
        plan = self._provider.repair_listeners(self._plans.newest())
        if plan is not None and not self._roster.obstacle() and self._upgrade.step is upgrade.Step.IDLE:
            self._plans.ask(plan)
            self._apply(ReloadAsked("a listener was bound anew", plan.timing))

    def _too_many(self, workers: int) -> str:
        most = self._workers.most()
        return "" if workers <= most else f"{workers} workers: there can be {most}, as of the start; restart"

    def reloading(self) -> bool:
        """Whether a reload is under way, or waits for a worker that is recycled first."""
        return self._roster.reloading()

    def start_upgrade(self, by: str) -> None:
        """Start another supervisor, which takes over."""
        timing = self._plans.newest().timing
        patience, farewell = timing.boot + UPGRADE_GRACE, timing.drain + 2 * STOP_GRACE
        self._apply_upgrade(upgrade.UpgradeAsked(by, self._obstacle(), patience, farewell))

    def upgrading(self) -> bool:
        """Whether a successor is starting, or some of our workers accept beside it yet."""
        leading = self._upgrade.step is upgrade.Step.LEADING
        return self._upgrade.step is upgrade.Step.STARTING or (leading and self._roster.accepting())

    def most_workers(self) -> int:
        """How many there can be."""
        return self._workers.most()

    def scale(self, by: str, workers: int) -> str:
        """Have so many workers. Why it cannot be, "" if it can."""
        why = self._roster.obstacle() or self._too_many(workers)
        if why:
            self._note(ScaleIgnored(by, why))
        else:
            self._apply(ScaleAsked(by, workers - len(self._roster.slots)))
        return why

    def stop(self, by: str, at_once: bool) -> None:
        """Drain and end, or end at once."""
        if self._predecessor is not None:
            self._predecessor.tell(StoppingMessage(at_once))
        self._apply_upgrade(upgrade.Stopping(at_once))
        self._stop(by, at_once)

    def _stop(self, by: str, at_once: bool) -> None:
        self._workers.publish(FleetSetting.SHARED, int(self._is_beside_another()))
        self._workers.publish(FleetSetting.STOPPING, 1)
        self._apply(StopAsked(by, at_once))

    def _obstacle(self) -> str:
        """Why there can be no upgrade now."""
        if self._pid == 1:
            return "process 1 cannot leave to another; reload, or start a new container"
        if self._predecessor is not None and not self._predecessor.gone:
            return f"the supervisor before this one ({self._predecessor.pid}) is still draining"
        if self.reloading():
            return "a reload is under way"
        if self._roster.phase is not Phase.SERVING:
            return f"the server is {self._roster.phase.name.lower()}"
        return ""

    # --- commands -----------------------------------------------------------------------------------------------------

    def _apply(self, fact: Fact) -> None:
        self._carry_out(fact)
        # Not earlier: commands that are still to be done would be about what has changed meanwhile.
        if self._reloaded is not None:
            generation, self._reloaded = self._reloaded, None
            self._follow_reload(self._plans.of(generation))

    def _carry_out(self, fact: Fact) -> None:
        commands = self._roster.apply(fact, self._system.monotonic())
        # Before anybody is told that they are ready, the workers know of each other.
        self._publish()
        for command in commands:
            self._do(command)
        self._publish()

    def _do(self, command: Command) -> None:
        match command:
            case Spawn():
                self._carry_out(self._spawn(command))
            case Drain():
                self._workers.signal(command.worker, signal.SIGTERM)
            case ReadHeartbeats():
                self._carry_out(self._workers.heartbeats())
                for fact in self._workers.impostors():
                    self._carry_out(fact)
            case Dump():
                self._workers.signal(command.worker, DUMP_SIGNAL)
            case Kill():
                self._workers.signal(command.worker, signal.SIGKILL)
            case EmitEvent():
                self._note(command.event)
            case AnnounceReady():
                self._announce()
            case Finish():
                self._outcome = command

    def _spawn(self, command: Spawn) -> Fact:
        try:
            self._provider.prepare_fork(self._plans.of(command.generation))
            return self._workers.spawn(command)
        except PreforkError as exc:
            return SpawnFailed(command.worker, str(exc))
        except (OSError, MemoryError) as exc:
            if self._roster.phase is Phase.BOOTING:
                raise
            return SpawnFailed(command.worker, reason_of(exc))

    def _apply_upgrade(self, fact: upgrade.Fact) -> None:
        for command in self._upgrade.apply(fact, self._system.monotonic()):
            self._do_upgrade(command)

    def _do_upgrade(self, command: upgrade.Command) -> None:
        match command:
            case upgrade.Launch():
                for fact in self._successor.launch():
                    self._apply_upgrade(fact)
            case upgrade.Signal():
                self._successor.signal(command.at_once)
            case upgrade.HandOver():
                self._hand_over()
            case upgrade.TakeBack():
                self._keep()
                self._apply(SuccessorRolledBack())
            case upgrade.StopToo():
                self._stop("its successor was stopped", command.at_once)
            case upgrade.EmitEvent():
                if isinstance(command.event, UpgradeFailed):
                    self._keep()
                self._note(command.event)

    def _hand_over(self) -> None:
        self._listen_for_commands(False)
        self._provider.set_ownership(FileOwnership.LEAVING)
        if self._outcome is None:
            self._apply(HandedOver())
        else:
            # We were to give up, and it has come in time: that is no failure any more.
            self._outcome = Finish(ExitCode.OK)

    def _keep(self) -> None:
        """The successor is dead, how far it may have come."""
        self._provider.set_ownership(FileOwnership.OWNER)
        self._listen_for_commands(True)

    def _note(self, event: Event) -> None:
        if isinstance(event, Reloading):
            plan = self._plans.begin(event.generation)
            if plan is not None:
                self._publish_limits(plan)
        elif isinstance(event, Reloaded):
            self._reloaded = event.generation
        if self._answers is not None:
            self._answers.notice(event)
        self._emit(event)

    def _follow_reload(self, plan: GenerationSpec) -> None:
        """A new number of workers in the settings holds from the reload on; one that was scaled to stays."""
        self._provider.commit(plan)
        before, self._wanted = self._wanted, plan.workers
        if self._wanted != before:
            self.scale("reload", self._wanted)

    def _publish(self) -> None:
        """How many there are to be, and who accepts."""
        self._workers.publish(FleetSetting.SLOTS, len(self._roster.slots))
        self._workers.publish_rows({w.number for w in self._roster.workers.values() if w.state is State.READY})

    def _publish_limits(self, plan: GenerationSpec) -> None:
        """They hold for those that run as well, from now on."""
        for field, value in plan.limits.items():
            self._workers.publish(field, value)

    def _announce(self) -> None:
        if self._predecessor is not None:
            # It leaves when it hears of it: everything must be ours by then.
            self._provider.set_ownership(FileOwnership.OWNER)
            self._listen_for_commands(True)
            self._predecessor.tell(ReadyMessage())
            self._note(TookOver(self._predecessor.pid))
            self._took_over = True
            self._inherit()
        self._provider.notify_ready()

    def _inherit(self) -> None:
        """What the one before had and we do not want can go when it has gone: until then it may take back."""
        if self._took_over and self._predecessor is not None and self._predecessor.gone:
            self._provider.release_unused(self._plans.all())

    def _listen_for_commands(self, listening: bool) -> None:
        if self._answers is not None:
            self._answers.control.listening = listening

    def _end_listening(self) -> None:
        """Nothing will accept any more, and the queues are empty: the kernel is to refuse connections from here on,
        whatever else holds the sockets. Not yet where another supervisor has them: its workers would fail."""
        beside = self._is_beside_another()
        if self._ending() and self._listening and not beside and not self._roster.accepting():
            self._listening = False
            self._provider.end_listening()

    def _is_beside_another(self) -> bool:
        """Whether the supervisor before us has our sockets still, or a successor that starts. One that leads owns them,
        and is none of our business."""
        before = self._predecessor is not None and not self._predecessor.gone
        return before or self._upgrade.step is upgrade.Step.STARTING

    def _ending(self) -> bool:
        return self._roster.phase in (Phase.STOPPING, Phase.FINISHED)

    def _ours(self) -> set[int]:
        """The children that we have made."""
        return self._workers.pids() | {self._upgrade.pid}

    def _retain_plans(self) -> None:
        """What no worker is made after any more can go: its sockets are closed."""
        rolling = self._roster.rolling
        if self._plans.drop(self._roster.generations(), expected=rolling is not None and rolling.again is not None):
            self._provider.release_unused(self._plans.all())
