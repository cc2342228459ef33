"""The supervisor: a shell around the roster that turns descriptors into facts and commands into system calls.

No event loop, no threads, no decisions, and nothing of the service is ever imported here. It holds what must outlive
every worker (the sockets, the TLS context) by keeping whoever made them alive; it never touches them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from .. import __version__
from ..config import MOST_WORKERS
from ..core.control import Request
from ..core.facts import (
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
from ..core.messages import Decoder, ReadyMessage, StackLine
from ..core.roster import Roster
from ..errors import PreforkError
from ..events import Emit, Event, Reloaded, ReloadFailed, ReloadIgnored, WorkerStacks, printable
from ..system.descriptors import Descriptor
from ..system.orphans import Lifeline
from ..system.processes import Child, System
from ..system.scoreboard import Field, Row, Scoreboard
from ..system.signals import SignalQueue
from .control import ControlSocket, Conversation
from .status import describe_reload, describe_roster

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_HEEDED = (*_STOP, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)
#: The system is short of something that may be there again in a moment.
_NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
#: Without pidfds only SIGCHLD tells of a child's end, and it can get lost: look so often at least, in seconds.
BLIND_INTERVAL = 0.5
#: poll(2) takes its milliseconds as an int: a drain timeout of a month would not fit.
LONGEST_WAIT = 3600.0
#: Rows of the scoreboard: workers and successors, and those that drain meanwhile. Untouched memory costs nothing.
ROWS = 16384
#: What reloads, scalings and stops by the control socket are put down to.
CONTROL = "control socket"
#: The signal that makes a worker tell its stacks.
DUMP_SIGNAL = signal.SIGUSR2
#: Lines of stacks kept of one worker.
STACK_LINES = 400


@dataclass(frozen=True, slots=True)
class Seat:
    """What a fresh worker finds itself with: its slot, the pipe to tell its state, and the one that tells of its
    parent's death. All signals are still blocked."""

    slot: int
    parent: int
    status: Descriptor
    lifeline: Lifeline
    row: Row
    dump_signal: int


@dataclass(slots=True)
class _Process:
    """A worker as the supervisor has it."""

    number: int
    child: Child
    status: Descriptor
    decoder: Decoder
    slot: int
    row: Row
    stacks: list[str] = field(default_factory=list)
    ended: bool = False
    """The status pipe's end was reached."""


class _InWorker(BaseException):
    """Unwinds the supervisor's stack in a child."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat


class Supervisor:
    """Keeps `workers` workers running until it is told to stop. Main thread only.

    `announce` is called once, when all accept. `renew` is called before a reload: it brings what workers inherit up to
    date, or raises PreforkError, and then there is no reload. `run` returns the outcome in the supervisor, a `Seat` in
    each worker. `pat` is called twice in every `watchdog` seconds, as long as a worker serves.
    """

    def __init__(
        self,
        workers: int,
        drain_timeout: float,
        emit: Emit,
        announce: Callable[[], object],
        renew: Callable[[], object] = lambda: None,
        boot_timeout: float = 60.0,
        hang_timeout: float = 30.0,
        watchdog: float | None = None,
        pat: Callable[[], object] = lambda: None,
        control: socket.socket | None = None,
        listeners: Sequence[str] = (),
    ) -> None:
        self._roster = Roster(
            workers, drain_timeout, random.random, boot_timeout=boot_timeout, hang_timeout=hang_timeout
        )
        self._renew = renew
        self._watchdog = watchdog
        self._pat = pat
        self._patted = 0.0
        self._control_listener = control
        self._control: ControlSocket | None = None
        self._listeners = listeners
        self._started = time.monotonic()
        self._reload_outcome: Event | None = None
        self._reload_askers: list[Conversation] = []
        self._scoreboard = Scoreboard(ROWS)
        self._free_rows = list(range(ROWS - 1, -1, -1))
        self._emit = emit
        self._announce = announce
        self._system = System()
        self._processes: dict[int, _Process] = {}
        self._outcome: Finish | None = None
        self._ready: set[int] = set()

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        self._lifeline = self._system.lifeline()
        self._signals = SignalQueue(_HEEDED)
        self._system.parent_only(*self._signals.descriptors())
        if self._control_listener is not None:
            self._control = ControlSocket(self._control_listener, self._system.parent_only)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            return
        # Nobody stays behind, also when what ends here is a bug.
        for process in list(self._processes.values()):
            process.child.signal(signal.SIGKILL)
            process.child.wait()
            self._forget(process)
        if self._control is not None:
            self._control.close()
        self._lifeline.close()
        # One more Ctrl-C, sent while we were at it, asks for nothing new.
        self._signals.take()
        self._signals.release()

    def run(self) -> Finish | Seat:
        """Supervise until no worker is wanted any more."""
        try:
            self._apply(Started())
            while self._outcome is None:
                concerned = self._wait()
                for number, _ in self._signals.take():
                    self._signal_came(number)
                for process in concerned:
                    self._look_after(process)
                self._serve_control()
                self._pat_watchdog()
                self._apply(TimePassed())
        except _InWorker as forked:
            return forked.seat
        return self._outcome

    # --- facts --------------------------------------------------------------------------------------------------------

    def _wait(self) -> list[_Process]:
        """Until a signal, a message or a death comes, or something is due; the workers that there may be news of."""
        poll = select.poll()
        due = self._next_due()
        seconds = None if due is None else min(max(0.0, due - self._system.monotonic()), LONGEST_WAIT)
        for descriptor in self._signals.readable():
            poll.register(descriptor, select.POLLIN)
        owners: dict[int, _Process] = {}
        blind: list[_Process] = []
        for process in self._processes.values():
            if not process.ended:
                owners[process.status.fileno()] = process
            if process.child.pollable:
                owners[process.child.fileno()] = process
            else:
                blind.append(process)
        for fd in owners:
            poll.register(fd, select.POLLIN)
        for fd, interest in ({} if self._control is None else self._control.interests()).items():
            poll.register(fd, interest)
        if blind:
            seconds = BLIND_INTERVAL if seconds is None else min(seconds, BLIND_INTERVAL)
        # Rounded up, or the last millisecond would be spun away.
        events = poll.poll(None if seconds is None else int(seconds * 1000) + 1)
        self._ready = {fd for fd, _ in events if fd not in owners}
        concerned = {owners[fd].number: owners[fd] for fd, _ in events if fd in owners}
        return [*concerned.values(), *(process for process in blind if process.number not in concerned)]

    def _next_due(self) -> float | None:
        times = [
            self._roster.next_due(self._system.monotonic()),
            None if self._control is None else self._control.next_due(),
        ]
        if self._watchdog is not None:
            times.append(self._patted + self._watchdog / 2)
        return min((each for each in times if each is not None), default=None)

    def _pat_watchdog(self) -> None:
        """The manager's watchdog is for the service, not for this process: if no worker serves, it may bite."""
        now = self._system.monotonic()
        if self._watchdog is not None and now >= self._patted + self._watchdog / 2:
            self._patted = now
            if self._roster.serving():
                self._pat()

    def _signal_came(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in _STOP:
            self._apply(StopAsked(name, at_once=number == signal.SIGQUIT))
        elif number == signal.SIGHUP:
            self._reload(name)
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._apply(ScaleAsked(name, 1 if number == signal.SIGTTIN else -1))

    def _reload(self, by: str) -> None:
        self._reload_outcome = None
        try:
            self._renew()
        except PreforkError as exc:
            self._do(Note(ReloadIgnored(by, str(exc))))
        else:
            self._apply(ReloadAsked(by))

    # --- control ------------------------------------------------------------------------------------------------------

    def _serve_control(self) -> None:
        if self._control is not None:
            for conversation, request in self._control.take(self._ready, self._system.monotonic()):
                self._answer(self._control, conversation, request)
            if self._reload_askers and self._roster.rolling is None:
                outcome, askers = self._reload_outcome, self._reload_askers
                self._reload_askers = []
                for asker in askers:
                    self._control.reply(asker, describe_reload(outcome, self._roster.generation))

    def _answer(self, control: ControlSocket, conversation: Conversation, request: Request) -> None:
        if request.command == "reload":
            self._reload(CONTROL)
            self._reload_askers.append(conversation)
        elif request.command == "scale":
            if not 1 <= request.workers <= MOST_WORKERS:
                error = f"workers must be from 1 to {MOST_WORKERS}, not {request.workers}"
                control.reply(conversation, {"ok": False, "error": error})
                return
            self._apply(ScaleAsked(CONTROL, request.workers - len(self._roster.slots)))
            control.reply(conversation, {"ok": True, "workers": len(self._roster.slots)})
        elif request.command == "stop":
            control.reply(conversation, {"ok": True, "pid": self._pid})
            self._apply(StopAsked(CONTROL, request.at_once))
        else:
            control.reply(conversation, {"ok": True, **self._status()})

    def _status(self) -> dict[str, Any]:
        rows = {process.number: process.row for process in self._processes.values()}
        return {
            "version": __version__,
            "pid": self._pid,
            "uptime": round(self._system.monotonic() - self._started, 3),
            "listeners": list(self._listeners),
            **describe_roster(self._roster, rows, self._heartbeats().ages),
        }

    # --- what workers say ---------------------------------------------------------------------------------------------

    def _look_after(self, process: _Process) -> None:
        death = process.child.reap()
        # What it said comes first: a worker that cannot start says why, and ends.
        self._listen(process)
        if death is not None:
            self._forget(process)
            self._apply(WorkerDied(process.number, death.describe(), death.clean))

    def _listen(self, process: _Process) -> None:
        """Once, and at most what fits in a pipe: a worker that talks without end must not hold up the rest."""
        if process.ended:
            return
        try:
            data = os.read(process.status.fileno(), 65536)
        except BlockingIOError:
            return
        process.ended = not data
        for message in process.decoder.feed(data):
            if isinstance(message, ReadyMessage):
                self._apply(WorkerReady(process.number))
            elif isinstance(message, StackLine):
                if len(process.stacks) < STACK_LINES:
                    process.stacks.append(printable(message.text))
            else:
                self._apply(WorkerUnable(process.number, message.reason))

    def _forget(self, process: _Process) -> None:
        if process.stacks:
            self._emit(WorkerStacks(process.slot, process.child.pid, "\n".join(process.stacks)))
        process.child.close()
        process.status.close()
        self._free_rows.append(process.row.number)
        self._processes.pop(process.number, None)

    def _heartbeats(self) -> HeartbeatsRead:
        now = time.monotonic_ns()
        beats = {process.number: process.row[Field.HEARTBEAT] for process in self._processes.values()}
        return HeartbeatsRead({number: (now - beat) / 1e9 for number, beat in beats.items() if beat})

    # --- commands -----------------------------------------------------------------------------------------------------

    def _apply(self, fact: Fact) -> None:
        for command in self._roster.apply(fact, self._system.monotonic()):
            self._do(command)

    def _do(self, command: Command) -> None:
        match command:
            case Spawn():
                self._spawn(command)
            case Drain():
                self._processes[command.worker].child.signal(signal.SIGTERM)
            case ReadHeartbeats():
                self._apply(self._heartbeats())
            case Dump():
                self._processes[command.worker].child.signal(DUMP_SIGNAL)
            case Kill():
                self._processes[command.worker].child.signal(signal.SIGKILL)
            case Note():
                if isinstance(command.event, Reloaded | ReloadFailed | ReloadIgnored):
                    self._reload_outcome = command.event
                self._emit(command.event)
            case AnnounceReady():
                self._announce()
            case Finish():
                self._outcome = command

    def _spawn(self, command: Spawn) -> None:
        if not self._free_rows:
            self._apply(SpawnFailed(command.worker, f"{ROWS} workers are there already"))
            return
        row = self._scoreboard.row(self._free_rows.pop())
        row.clear()
        with contextlib.ExitStack() as undo:
            try:
                reader, writer = (Descriptor(fd) for fd in os.pipe())
                undo.callback(reader.close)
                undo.callback(writer.close)
                os.set_blocking(reader.fileno(), False)
                self._system.parent_only(reader)
                child = self._system.fork()
            except OSError as exc:
                if exc.errno not in _NO_ROOM:
                    raise
                self._free_rows.append(row.number)
                self._apply(SpawnFailed(command.worker, os.strerror(exc.errno).lower()))
                return
            undo.pop_all()
        if child is None:
            self._processes.clear()
            raise _InWorker(Seat(command.slot, self._pid, writer, self._lifeline, row, DUMP_SIGNAL))
        writer.close()
        self._processes[command.worker] = _Process(command.worker, child, reader, Decoder(), command.slot, row)
        self._apply(Spawned(command.worker, child.pid))
