"""The supervisor: a poll loop that turns signals, messages and exits into facts, and commands into effects.

No event loop, no threads, and the service is never imported here. `core/roster.py` decides which workers run. Decided
here is what takes the roster and an upgrade together: which requests are refused, when listeners are repaired, and when
listening ends. What outlives the workers (sockets, the TLS context) belongs to `assembly/resources.py` ServerResources.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any, Generic, Self

from .._version import __version__
from ..core import facts
from ..core.facts import Command, Fact, StopRequested
from ..core.roster import Roster
from ..core.states import ServerPhase, WorkerState
from ..errors import PreforkError, place_of, reason_of
from ..events import Emit, HeldBack, SystemFailed
from ..implementation import describe_core
from ..system.descendants import AdoptedProcesses
from ..system.fork_context import ForkContext
from ..system.processes import System
from ..system.scoreboard import FleetSetting
from ..system.signals import SignalQueue
from ..system.source_changes import Watched
from ..system.worker_signals import PROGRAM_SIGNALS, SERVICE_SIGNALS
from ..text import escape_controls
from . import old_workers
from .console import Console
from .control_commands import ControlCommands
from .control_server import ControlSocket
from .exporter import Exporter, ExporterSpec
from .generations import C, GenerationSpec, Resources
from .operations import Operations
from .polling import Part, Watchdog, wait
from .programs import Programs
from .reload import Reloads
from .reload_history import ReloadHistory
from .requests import Requests
from .source_watch import SourceWatch
from .status import SCHEMA, describe_fleet
from .stopping import Stopping
from .takeover import Takeover
from .tls_renewal import TLSRenewal
from .upgrade import Predecessor
from .workers import ChildStarted, Workers

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_OTHER_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)
#: Maximum seconds at the end for killing orphans. More come to this process while their parents are killed.
ORPHANS_GRACE = 2.0
#: Seconds until the next iteration after a system call of the supervisor itself failed.
FAILURE_PAUSE = 0.1


class Supervisor(Generic[C]):
    """Keeps the workers of `spec` running until it is told to stop. Main thread only; close it by `with`.

    `run` returns the outcome in the supervisor, and a `ForkContext` in each worker. `watchdog` is the service manager's
    timeout in seconds. A `predecessor` owns everything until all workers here are ready. A change of the `watched`
    sources is a reload. `about` are plain values that `prefork status` shows as they are. `held_back` is what the log
    has to say later.
    """

    def __init__(
        self,
        spec: GenerationSpec[C],
        resources: Resources[C],
        emit: Emit,
        system: System,
        control: ControlSocket | None = None,
        watchdog: float | None = None,
        predecessor: Predecessor | None = None,
        leave_daemons: bool = False,
        watched: Watched | None = None,
        held_back: HeldBack | None = None,
        exporter: ExporterSpec | None = None,
        about: Mapping[str, Any] | None = None,
        suspended: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._about = dict(about or {})
        self._resources = resources
        self._emit = emit
        self._system = system
        self._held_back = held_back
        self._watchdog = Watchdog(watchdog, resources.notify_watchdog)
        self._leave_daemons = leave_daemons
        self._started = system.monotonic()
        self._epoch = time.time() - self._started
        """What makes a time since 1970 of a monotonic one. Taken once, so that a moment that is told stays the same."""
        self._listening = True
        self._outcome: facts.Finish | None = None
        self._history = ReloadHistory()
        self._pending_generation_serves: list[facts.GenerationServes] = []
        """Carried out last, because a scale-down removes slots that other commands name."""
        self._roster = Roster(spec.workers, spec.timing, random.random)
        self._requests = Requests(resources, self._spec, self._may_lease)
        self._workers = Workers(
            system,
            emit,
            spec.workers,
            self._requests,
            Programs(resources, emit),
            SERVICE_SIGNALS if spec.program is None else PROGRAM_SIGNALS,
        )
        self._stopping = Stopping(self._roster, self._workers, self._pid)
        self._reloads = Reloads(spec, resources, emit, self._workers.max_workers)
        self._publish_limits(spec)
        # nohup ignores SIGHUP so that the end of a terminal does not end the program. Here SIGHUP ends nothing.
        self._signals = SignalQueue((*_STOP_SIGNALS, *_OTHER_SIGNALS), even_if_ignored=(signal.SIGHUP,))
        self._adopted = AdoptedProcesses(system)
        system.close_in_child(*self._signals.descriptors())
        self._control = control
        self._takeover = Takeover(system, resources, emit, self._fleet, control, predecessor)
        self._sources = SourceWatch(watched, system, emit)
        self._exporter = Exporter(exporter, system, emit, self._status_for_exporter)
        self._must_announce = False
        """Every worker accepts for the first time, and that is not announced yet."""
        self._console = Console(
            self._workers,
            self._roster,
            emit,
            control,
            self._listeners,
            lambda: self._takeover.predecessor_pid,
            self._takeover.reload_refusal,
            self._apply,
        )
        self._operations = Operations(
            self._roster,
            self._workers,
            self._reloads,
            self._history,
            self._takeover,
            self._stopping,
            system,
            emit,
            self._status,
            self._apply,
        )
        self._tls = TLSRenewal(
            resources, self._reloads, self._workers, self._roster, system, self._operations.start_reload
        )
        self._commands = None if control is None else ControlCommands(control, self._operations, self._console)
        self._workers.publish(FleetSetting.SUSPENDED, int(suspended))
        self._parts: list[Part] = [
            self._workers,
            self._requests,
            self._takeover,
            self._sources,
            self._exporter,
            self._console,
            self._tls,
            *([] if control is None else [control]),
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if os.getpid() != self._pid:
            return
        if kind is not None:
            self._takeover.fail("the new supervisor failed; its log says why")
        stopped = self._stopping.outcome(self._system.monotonic(), self._takeover.predecessor_pid)
        self._sources.close()
        self._tls.close()
        self._exporter.close()
        self._workers.close()
        if not self._leave_daemons:
            self._adopted.kill(self._children(), ORPHANS_GRACE)
        self._takeover.close()
        self._requests.close()
        if self._commands is not None and kind is None:
            self._commands.finish(stopped)
        if self._control is not None:
            self._control.close()
        # The process is at its end: another Ctrl-C asks for nothing new, and must not leave a traceback.
        self._signals.read()
        self._signals.release(ignoring=_STOP_SIGNALS if kind is None else ())

    def run(self) -> facts.Finish | ForkContext:
        try:
            self._apply(facts.Started())
            while self._outcome is None or self._must_wait():
                try:
                    self._iterate(self._wait())
                except (OSError, MemoryError) as exc:
                    self._survive(exc)
        except ChildStarted as child:
            return child.context
        # Before its sockets are shut down, which it would report as a failure.
        self._exporter.close()
        if self._outcome.reason:
            # Without a reason this is a stop that was asked for, of which the predecessor knows (`Takeover.stop`).
            self._takeover.fail(self._outcome.reason)
        return self._outcome

    def _must_wait(self) -> bool:
        """Return whether another process that depends on this one has to end first."""
        return self._takeover.must_wait() or self._exporter.must_wait(self._system.monotonic())

    def spec_of(self, context: ForkContext) -> GenerationSpec[C]:
        return self._reloads.spec(context.generation)

    def _rss_limit(self, generation: int) -> int | None:
        return self._spec(generation).max_worker_rss

    def _may_lease(self) -> bool:
        return self._takeover.may_lease()

    def _spec(self, generation: int) -> GenerationSpec[C]:
        return self._reloads.spec_or_newest(generation)

    def _survive(self, exc: OSError | MemoryError) -> None:
        """Log a failed system call and pause before the next iteration. Before the first worker is ready, raise it
        instead, because it is the reason why the start fails."""
        if self._roster.phase is ServerPhase.BOOTING:
            raise exc
        self._emit(SystemFailed(escape_controls(reason_of(exc)), place_of(exc)))
        self._system.sleep(FAILURE_PAUSE)

    # --- one iteration of the loop ------------------------------------------------------------------------------------

    def _wait(self) -> set[int]:
        """Wait for a signal, a message or an exit, or until something is due. Return the descriptors that are ready."""
        now = self._system.monotonic()
        interests = {descriptor.fileno(): select.POLLIN for descriptor in self._signals.readable()}
        for part in self._parts:
            interests |= part.interests(now)
        times = [self._roster.next_due(now), self._watchdog.next_due(), *(part.next_due(now) for part in self._parts)]
        times.append(None if self._commands is None else self._commands.next_due(now))
        times.append(None if self._held_back is None else self._held_back.next_due())
        try:
            return wait(interests, times, now)
        except OSError as exc:
            # Take all as ready, because reading them does not block.
            self._survive(exc)
            return set(interests)

    def _iterate(self, ready: set[int]) -> None:
        for number, _ in self._signals.read():
            self._on_signal(number)
        for fact in self._workers.collect(ready, self._system.monotonic()):
            self._apply(fact)
            if isinstance(fact, facts.WorkerDied) and not fact.clean and not self._ending():
                self._repair_listeners()
        self._requests.collect(ready)
        self._takeover.give_leases_up(self._requests.are_held())
        self._apply_all(self._takeover.collect(self._system.monotonic()))
        if self._takeover.take_reopen():
            self._reopen_logs()
        if self._commands is not None:
            self._commands.serve(ready, self._system.monotonic())
        self._console.collect(self._system.monotonic())
        self._sources.collect(self._system.monotonic())
        self._tls.collect(self._system.monotonic())
        if self._held_back is not None:
            self._held_back.flush()
        self._tend_exporter()
        self._announce_ready()
        self._watchdog.update(self._roster.has_live_workers(), self._system.monotonic())
        self._apply(facts.TimePassed())
        self._reload_changed_sources()
        self._reloads.forget_unused(self._roster.generations())
        if self._takeover.take_settled():
            self._reloads.release_sockets()
        self._end_listening()
        self._adopted.reap(self._children())

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in _STOP_SIGNALS:
            self._operations.stop(name, at_once=number == signal.SIGQUIT, by_signal=True)
        elif number == signal.SIGHUP:
            self._operations.start_reload(name)
        elif number == signal.SIGUSR1:
            self._reopen_logs()
        elif number == signal.SIGUSR2:
            self._operations.start_upgrade(name)
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._operations.scale(name, max(1, len(self._roster.slots) + (1 if number == signal.SIGTTIN else -1)))

    def _reopen_logs(self) -> None:
        self._resources.reopen_logs()
        self._workers.reopen_logs()
        self._takeover.pass_on_reopen()

    # --- what it tells ------------------------------------------------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        spec = self._reloads.newest(self._roster.generation)
        now = self._system.monotonic()
        uptime, drains_at = now - self._started, self._roster.drains_at()
        return {
            "schema": SCHEMA,
            "version": __version__,
            "streams": describe_core(),
            "pid": self._pid,
            "predecessor": self._takeover.predecessor_pid,
            "upgrading": self._takeover.upgrading(self._roster.accepting()),
            "started": round(self._started + self._epoch, 3),
            "uptime": round(uptime, 3),
            **self._about,
            "drains_in": None if drains_at is None else round(max(0.0, drains_at - now), 3),
            "suspended": self._console.suspended,
            "listeners": self._listeners(),
            "queues": self._resources.queues(),
            "limit": spec.limits.get(FleetSetting.MAX_CONNECTIONS) or None,
            "certificates": [{"file": file, "not_after": end} for file, end in spec.certificates],
            "failed_upgrades": self._takeover.failed_upgrades,
            "certificate_reloads": self._resources.certificate_reloads(),
            "reloads": self._history.describe(self._epoch),
            **describe_fleet(self._roster, self._workers, now, self._epoch),
        }

    def _status_for_exporter(self) -> dict[str, Any]:
        return {**self._status(), "service_metrics": self._workers.readings.service_metrics()}

    def _fleet(self) -> tuple[int, bool]:
        """Return what a successor has to know: the number of workers, and whether accepting is suspended."""
        return len(self._roster.slots), self._console.suspended

    def _listeners(self) -> list[str]:
        newest = self._reloads.newest(self._roster.generation)
        return [*newest.listeners, *self._resources.program_listeners()]

    # --- facts and commands -------------------------------------------------------------------------------------------

    def _apply_all(self, news: Iterable[Fact]) -> None:
        for fact in news:
            self._apply(fact)

    def _apply(self, fact: Fact) -> None:
        self._carry_out(fact)
        while self._pending_generation_serves:
            serves = self._pending_generation_serves.pop(0)
            scale = self._reloads.on_serves(serves)
            stay = self._operations.old_connections()
            if stay.connections:
                self._emit(stay)
            self._history.succeeded(serves.generation, self._system.monotonic())
            self._silence_unused(self._spec(serves.generation))
            if scale is not None:
                self._carry_out(scale)

    def _carry_out(self, fact: Fact) -> None:
        if isinstance(fact, StopRequested):
            self._stopping.begin(self._system.monotonic())
        commands = self._roster.apply(fact, self._system.monotonic())
        # Workers learn of each other before READY is reported.
        self._publish_fleet()
        for command in commands:
            self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case facts.Spawn():
                self._carry_out(self._spawn(command))
            case facts.Drain():
                self._workers.drain(command.worker_id, command.until)
            case facts.HurryDrain():
                self._workers.drain(command.worker_id, command.until)
                if command.why:
                    self._emit(self._workers.hurried(command.worker_id, command.until, command.why))
            case facts.ReadHeartbeats():
                self._carry_out(self._workers.readings.heartbeats())
                # With the heartbeats, because they are read regularly, and seldom enough to count descriptors in /proc.
                for fact in (
                    *self._workers.readings.overclaiming(),
                    *old_workers.too_large(self._roster, self._rss_limit),
                ):
                    self._carry_out(fact)
            case facts.ReadTraffic():
                waiting = sum(queue["waiting"] for queue in self._resources.queues())
                self._carry_out(facts.TrafficRead(self._workers.readings.arrivals() + waiting))
            case facts.BeginDrain():
                self._stopping.begin_drain()
                # Before the workers get SIGTERM: they shut the sockets down only if no other supervisor has them.
                self._workers.publish(FleetSetting.LISTENERS_SHARED, int(self._takeover.shares_sockets()))
                self._workers.publish(FleetSetting.STOPPING, 1)
            case facts.DumpStacks():
                self._workers.dump(command.worker_id)
            case facts.Kill():
                self._workers.kill(command.worker_id)
            case facts.BeginGeneration():
                self._publish_limits(self._reloads.spec(command.generation))
            case facts.GenerationServes():
                self._pending_generation_serves.append(command)
            case facts.GenerationFailed():
                self._reloads.on_failed(command)
                self._history.failed(self._roster.generation, command.reason, self._system.monotonic())
                self._publish_limits(self._reloads.spec(self._roster.last_good))
            case facts.EmitEvent():
                self._emit(command.event)
            case facts.AnnounceReady():
                self._must_announce = True
                self._announce_ready()
            case facts.Finish():
                self._outcome = command

    def _announce_ready(self) -> None:
        """Take over and say that this supervisor serves, once its workers and the process of --metrics can."""
        if self._must_announce and self._exporter.is_prepared(self._system.monotonic()) and not self._ending():
            self._must_announce = False
            self._silence_unused(self._spec(self._roster.generation))
            self._takeover.take_over()
            self._tend_exporter()
            self._resources.notify_ready()

    def _tend_exporter(self) -> None:
        takeover = self._takeover
        self._exporter.collect(self._system.monotonic(), wanted=takeover.owns_files, soon=takeover.is_pending)

    def _silence_unused(self, spec: GenerationSpec[C]) -> None:
        """Have connections refused where no worker of a program listens, now that all are of the generation."""
        if spec.program is not None:
            self._resources.silence_unused(self._workers.listening())

    def _spawn(self, command: facts.Spawn) -> Fact:
        spec = self._reloads.spec(command.generation)
        try:
            self._resources.prepare_fork(spec)
            # No lease of another worker's.
            self._system.close_in_child(*self._requests.sockets())
            return self._workers.spawn(command, spec.program)
        except PreforkError as exc:
            return facts.SpawnFailed(command.worker_id, str(exc))
        except (OSError, MemoryError) as exc:
            if self._roster.phase is ServerPhase.BOOTING:
                raise
            return facts.SpawnFailed(command.worker_id, reason_of(exc))

    def _reload_changed_sources(self) -> None:
        """Reload if sources have changed, as soon as a reload is possible and none is under way: no change is lost, and
        one reload serves all changes that came before it."""
        refused = self._roster.refusal() is not None or self._takeover.reload_refusal() is not None
        waits = self._roster.reloading() and not self._roster.is_stuck(self._system.monotonic())
        if not refused and not waits and (change := self._sources.take_change()):
            self._operations.start_reload(f"--reload: {change}")

    def _repair_listeners(self) -> None:
        """Repair what the dead worker may have done to the sockets that it shared with the others."""
        allowed = self._roster.refusal() is None and self._takeover.reload_refusal() is None
        request = self._reloads.repair(self._roster.generation + 1, allowed)
        if request is not None:
            self._apply(request)

    def _publish_fleet(self) -> None:
        self._workers.publish(FleetSetting.SLOTS, len(self._roster.slots))
        self._workers.publish_rows(
            {each.id for each in self._roster.workers.values() if each.state is WorkerState.READY}
        )

    def _publish_limits(self, spec: GenerationSpec[C]) -> None:
        for setting, value in spec.limits.items():
            self._workers.publish(setting, value)

    def _end_listening(self) -> None:
        """Close the listening sockets at the end, as soon as no worker accepts, so that the kernel refuses connections
        whatever else holds the sockets. The last worker has emptied the queues, unless it died. Not while another
        supervisor has the sockets, because its workers would fail."""
        shared = self._takeover.shares_sockets()
        if self._ending() and self._listening and not shared and not self._roster.accepting():
            self._listening = False
            self._resources.end_listening()

    def _ending(self) -> bool:
        return self._roster.phase in (ServerPhase.STOPPING, ServerPhase.FINISHED)

    def _children(self) -> set[int]:
        return self._workers.pids() | {self._takeover.successor_pid, self._sources.pid, self._exporter.pid}
