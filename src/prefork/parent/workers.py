"""The worker processes as the supervisor has them: fork, receive messages, signal, reap, and close descriptors.

Turns messages and exits into facts. The roster decides which workers there are to be.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Collection, Iterator
from typing import Any

from ..config import MAX_WORKERS
from ..core.facts import (
    ExitCause,
    Fact,
    RecycleRequested,
    Spawn,
    Spawned,
    SpawnFailed,
    WorkerDied,
    WorkerReady,
    WorkerStoppedAccepting,
    WorkerUnable,
)
from ..core.messages import (
    Decoder,
    LimitTooLowMessage,
    ListeningMessage,
    ReadyMessage,
    RecycleMessage,
    StackLine,
    StoppedAcceptingMessage,
    UnableMessage,
)
from ..errors import reason_of
from ..events import Emit, OldWorkerHurried, WorkerLimitTooLow, WorkerStacks
from ..system.child import Child, ExitStatus
from ..system.descriptors import Descriptor, Reserve, raise_limit
from ..system.fork_context import ForkContext
from ..system.inboxes import Inboxes
from ..system.memory import OomKills
from ..system.process_usage import reaped_seconds
from ..system.processes import REAP_INTERVAL, RESOURCE_ERRNOS, System
from ..system.scoreboard import FleetSetting, Row, Scoreboard
from ..system.worker_signals import SERVICE_SIGNALS, WorkerSignals
from ..text import escape_ascii
from .accounts import Accounts
from .generations import ProgramSpec
from .programs import Programs
from .readings import Readings
from .requests import Asker, Requests
from .worker_ends import WorkerEnds
from .worker_process import WorkerProcess

#: Rows of the scoreboard for each worker that there can be: for itself, for the old ones of its slot that drain as they
#: need (core/fleet.py MAX_OLD_WORKERS), and for successors and old ones that have to hurry. Untouched memory costs
#: nothing.
ROWS_PER_WORKER = 4
#: There can be this many times the workers of the start, and at least MIN_WORKERS. At most MAX_ROWS rows, because each
#: takes two of the 65,530 mappings that a process may have (proc(5), max_map_count).
GROWTH = 2
MIN_WORKERS = 64
MAX_ROWS = ROWS_PER_WORKER * MAX_WORKERS
#: Inboxes for each worker at the start, and the minimum. A worker in a slot beyond serves what it accepts itself.
INBOXES_PER_WORKER = 2
MIN_INBOXES = 8
#: Descriptors that are kept for the fork of a worker, and for a renewal of certificates, when no other is left. Each
#: takes as many for a moment.
RESERVED_DESCRIPTORS = 12
#: Maximum number of lines of stacks kept of one worker.
MAX_STACK_LINES = 400
#: A worker that writes this much at once is misbehaving: its status pipe is ignored for MUTE_SECONDS.
FLOOD_BYTES = 16 * 1024
MUTE_SECONDS = 0.5


class ChildStarted(BaseException):
    """Raised in a child to unwind the supervisor's stack."""

    def __init__(self, context: ForkContext) -> None:
        self.context = context


class Workers:
    """Owns every worker process from its fork until it is reaped. `close` kills those that are left.

    Workers are named by their id, see `core/facts.py`. `signals` is how they are spoken to, `requests` answers them.
    """

    def __init__(
        self,
        system: System,
        emit: Emit,
        workers: int,
        requests: Requests[Any],
        programs: Programs,
        signals: WorkerSignals = SERVICE_SIGNALS,
    ) -> None:
        self._system = system
        self._emit = emit
        self._requests = requests
        self._programs = programs
        self._signals = signals
        self._pid = os.getpid()
        self._lifeline = system.lifeline()
        rows = ROWS_PER_WORKER * max(MIN_WORKERS, GROWTH * workers)
        self._scoreboard = Scoreboard(min(rows, MAX_ROWS), peers=raise_limit())
        self._inboxes = Inboxes(min(self.max_workers, max(MIN_INBOXES, INBOXES_PER_WORKER * workers)))
        self._published_rows: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._free_rows: list[int] = []
        self._used_rows = 0
        self._oom_kills = OomKills()
        self._reserve = Reserve(RESERVED_DESCRIPTORS, system.close_in_child)
        self._processes: dict[int, WorkerProcess] = {}
        self._accounts = Accounts()
        self.readings = Readings(self._processes, self._scoreboard, self._accounts, system)
        self._too_low = -1
        """The last generation of which a worker has said that its limit of memory is too low."""

    def close(self) -> None:
        """Kill and reap every worker, which matters when the supervisor ends by a bug."""
        for process in list(self._processes.values()):
            process.child.signal(signal.SIGKILL)
            process.child.wait()
            self._forget(process)
        self._reserve.close()
        self._lifeline.close()
        self._inboxes.close()
        self._scoreboard.close()

    # --- what the supervisor reads ------------------------------------------------------------------------------------

    @property
    def max_workers(self) -> int:
        """How many workers there can be."""
        return self._scoreboard.rows // ROWS_PER_WORKER

    def pids(self) -> set[int]:
        return {process.child.pid for process in self._processes.values()}

    def listening(self) -> set[int]:
        """Return the inodes of the sockets that programs listen on."""
        running = (process.program for process in self._processes.values())
        return {socket for each in running if each is not None for socket in each.readiness.listening}

    # --- what the workers read ----------------------------------------------------------------------------------------

    def publish(self, setting: FleetSetting, value: int) -> None:
        if self._scoreboard.settings[setting] != value:
            self._scoreboard.settings[setting] = value

    def published(self, setting: FleetSetting) -> int:
        return self._scoreboard.settings[setting]

    def suspends(self, worker_id: int) -> bool:
        """Return whether a worker is kept from accepting. What a program accepts by itself is not."""
        process = self._processes.get(worker_id)
        return process is not None and process.program is None and bool(self.published(FleetSetting.SUSPENDED))

    def publish_rows(self, accepting: Collection[int]) -> None:
        """Write to the scoreboard which workers accept, and which other ones there are."""
        processes = self._processes.values()
        lists = (
            {each.row.number: each.slot for each in processes if each.worker_id in accepting},
            {each.row.number: each.slot for each in processes if each.worker_id not in accepting},
        )
        if lists != self._published_rows:
            self._published_rows = lists
            self._scoreboard.publish(*lists)

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        wanted: dict[int, int] = {}
        for process in self._processes.values():
            if not process.ended and now >= process.muted_until:
                wanted[process.status.fileno()] = select.POLLIN
            if process.child.pollable:
                wanted[process.child.fileno()] = select.POLLIN
            if not process.asker.ended and now >= process.asker.paused_until:
                wanted[process.asker.channel.fileno()] = select.POLLIN
            if process.program is not None and (channel := process.program.interest(now)) is not None:
                wanted[channel] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """Return when to read a muted status pipe again, or to look for an exit that no descriptor tells of."""
        times = [each.muted_until for each in self._processes.values() if not each.ended and now < each.muted_until]
        times += [each.asker.paused_until for each in self._processes.values() if now < each.asker.paused_until]
        running = [process.program for process in self._processes.values() if process.program is not None]
        times += [due for each in running if (due := self._programs.next_due(each, now)) is not None]
        if any(not process.child.pollable for process in self._processes.values()):
            # Without pidfds only SIGCHLD tells of an exit, and it can get lost.
            times.append(now + REAP_INTERVAL)
        return min(times, default=None)

    def collect(self, ready: set[int], now: float) -> Iterator[Fact]:
        """Receive messages and reap; `ready` are the descriptors that poll named.

        Yields one fact at a time, because what follows from it may concern a worker whose exit is not reported yet.
        """
        for process in list(self._processes.values()):
            if not process.child.pollable or not ready.isdisjoint(self._descriptors(process)):
                yield from self._collect_one(process, now)
            elif process.program is not None:
                yield from self._programs.check(process.program, now)

    def _descriptors(self, process: WorkerProcess) -> list[int]:
        found = [process.child.fileno()] if process.child.pollable else []
        found += [] if process.ended else [process.status.fileno()]
        return found if process.asker.ended else [*found, process.asker.channel.fileno()]

    def _collect_one(self, process: WorkerProcess, now: float) -> Iterator[Fact]:
        before = reaped_seconds()
        status = process.child.reap()
        if status is not None:
            process.cpu = reaped_seconds() - before
        # Messages first: a worker that cannot start says why and ends.
        yield from self._receive(process, now)
        if not process.asker.ended and now >= process.asker.paused_until:
            self._requests.serve(process.asker, now)
        if process.program is not None:
            yield from self._programs.check(process.program, now)
        if status is not None:
            connections = process.row.counters().open
            self._forget(process)
            cause = self._cause(status)
            description = status.describe() + (", out of memory" if cause is ExitCause.MEMORY else "")
            told = self._ended_as_told(process, status)
            yield WorkerDied(process.worker_id, description, told, cause, connections)

    def _receive(self, process: WorkerProcess, now: float) -> list[Fact]:
        """Read the status pipe once, up to what fits in a pipe: a worker that floods it must not hold up the rest."""
        if process.ended:
            return []
        try:
            data = os.read(process.status.fileno(), 65536)
        except BlockingIOError:
            return []
        process.ended = not data
        if len(data) >= FLOOD_BYTES:
            process.muted_until = now + MUTE_SECONDS
        facts: list[Fact] = []
        for message in process.decoder.feed(data):
            match message:
                case ReadyMessage() if process.program is None:
                    facts.append(WorkerReady(process.worker_id))
                case ListeningMessage() if process.program is not None:
                    self._programs.on_listening(process.program, message.socket, now)
                case StoppedAcceptingMessage():
                    facts.append(WorkerStoppedAccepting(process.worker_id))
                case RecycleMessage():
                    facts.append(RecycleRequested(process.worker_id, escape_ascii(message.reason)))
                case LimitTooLowMessage() if self._too_low < process.asker.generation:
                    # Once, though each worker of a generation says so.
                    self._too_low = process.asker.generation
                    self._emit(WorkerLimitTooLow(message.limit, message.rss))
                case UnableMessage():
                    facts.append(WorkerUnable(process.worker_id, message.reason))
                case StackLine() if len(process.stacks) < MAX_STACK_LINES:
                    process.stacks.append(escape_ascii(message.text))
        return facts

    def _ended_as_told(self, process: WorkerProcess, status: ExitStatus) -> bool:
        """Return whether the end was clean. Programs also end by the signal that asks them to, as uvicorn does."""
        told = process.program is not None and process.drained and status.signal in (signal.SIGTERM, signal.SIGINT)
        return status.clean or told

    def _cause(self, status: ExitStatus) -> ExitCause:
        if status.signal is None:
            return ExitCause.EXIT
        if status.core:
            return ExitCause.CORE
        if status.signal == signal.SIGKILL and self._oom_kills.attribute(self._system.monotonic()):
            return ExitCause.MEMORY
        return ExitCause.SIGNAL

    def _forget(self, process: WorkerProcess) -> None:
        if process.stacks:
            self._emit(WorkerStacks(process.slot, process.child.pid, "\n".join(process.stacks)))
        process.child.close()
        process.status.close()
        process.tether.close()
        process.asker.channel.close()
        if process.console is not None:
            process.console.close()
        if process.program is not None:
            process.program.close()
        self._requests.forget(process.worker_id)
        self._accounts.retire(process.slot, process.row, process.cpu)
        self._free_rows.append(process.row.number)
        self._processes.pop(process.worker_id, None)

    def has_console(self, worker_id: int) -> bool:
        """Return whether a worker has a console: a program has none."""
        return self._processes[worker_id].console is not None

    def stack_lines(self, worker_id: int) -> list[str]:
        """Return the lines of stacks that a worker has written and that were not taken."""
        return self._processes[worker_id].stacks

    def take_stack_lines(self, worker_id: int, start: int, keep: bool) -> list[str]:
        """Return the lines from `start` on; unless they are to be kept, they are not logged at the worker's end."""
        lines = self._processes[worker_id].stacks
        taken = lines[start:]
        if not keep:
            del lines[start:]
        return taken

    def connect(self, worker_id: int) -> socket.socket | None:
        """Return a new connection to a worker's console; None for a program, and for a worker that takes none now."""
        console = self._processes[worker_id].console
        return None if console is None else console.connect()

    def hand_out(self, worker_id: int, file: Descriptor) -> bool:
        """Send a file to a worker. Return False if it takes none now; True also if it has ended, or is a program."""
        process = self._processes.get(worker_id)
        return process is None or process.console is None or process.console.hand_out(file)

    @contextlib.contextmanager
    def giving_up_reserve(self) -> Iterator[None]:
        """Have some descriptors free for the block, also when no other is left."""
        self._reserve.close()
        try:
            yield
        finally:
            self._reserve.fill()

    # --- what is done to them -----------------------------------------------------------------------------------------

    def drain(self, worker_id: int, until: float | None) -> None:
        """Tell a worker to drain, and to abort its connections at `until` (None: never); again for an earlier time."""
        process = self._processes[worker_id]
        process.drained = True
        self._scoreboard.set_drain_deadline(process.row.number, until)
        process.child.signal(self._signals.drain)

    def hurried(self, worker_id: int, until: float, why: str) -> OldWorkerHurried:
        """Return the event that a worker has to abort its connections at `until`."""
        process = self._processes[worker_id]
        seconds = max(0.0, until - self._system.monotonic())
        return OldWorkerHurried(process.slot, process.child.pid, why, process.row.open, seconds)

    def dump(self, worker_id: int) -> None:
        self._processes[worker_id].child.signal(self._signals.dump)

    def kill(self, worker_id: int) -> None:
        self._processes[worker_id].child.signal(signal.SIGKILL)

    def reopen_logs(self) -> None:
        for process in self._processes.values():
            process.child.signal(self._signals.reopen)

    def spawn(self, command: Spawn, spec: ProgramSpec | None = None) -> Fact:
        """Fork a worker, of the program of `spec` if there is one. Return Spawned, or SpawnFailed if the system lacks a
        resource.

        Raises ChildStarted in the child. Raises OSError for a failure of another kind; nothing has changed then.
        """
        row = self._take_row()
        if row is None:
            return SpawnFailed(command.worker_id, f"{self._scoreboard.rows} workers exist already")
        self._reserve.close()
        ends = None
        try:
            ends = WorkerEnds(self._system, self._programs, command, spec)
            self._inboxes.repair(command.slot)
            child = self._system.fork()
        except (OSError, MemoryError) as exc:
            self._free_rows.append(row.number)
            if ends is not None:
                ends.close()
            self._reserve.fill()
            if isinstance(exc, OSError) and exc.errno not in RESOURCE_ERRNOS:
                raise
            return SpawnFailed(command.worker_id, reason_of(exc))
        if child is None:
            self._processes.clear()
            shared = (self._pid, self._lifeline, self._scoreboard, self._inboxes)
            raise ChildStarted(ends.fork_context(command, *shared, row.number, self._signals))
        ends.close_child_ends()
        self._reserve.fill()
        return self._add(command, child, ends, row)

    def _add(self, command: Spawn, child: Child, ends: WorkerEnds, row: Row) -> Spawned:
        child.lead_group()
        asker = Asker(command.worker_id, command.slot, command.generation, ends.channel.parent_end, None)
        program = ends.program
        if program is not None:
            program.pid, asker.readiness = child.pid, program.readiness
            if program.channel is not None:
                # Only now, because its own child has used it. A sibling could say that this one is ready.
                self._system.close_in_child(program.channel)
        self._processes[command.worker_id] = WorkerProcess(
            command.worker_id,
            child,
            ends.status,
            ends.tether,
            Decoder(),
            command.slot,
            row,
            asker,
            ends.console,
            program,
        )
        return Spawned(command.worker_id, child.pid)

    def _take_row(self) -> Row | None:
        if self._free_rows:
            return self._scoreboard.clear(self._free_rows.pop())
        if self._used_rows < self._scoreboard.rows:
            self._used_rows += 1
            return self._scoreboard.row(self._used_rows)
        return None
