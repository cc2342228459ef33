"""The worker processes as the supervisor has them: forked, heard, signalled and reaped, each with its descriptors.

What they say and how they end becomes facts; which of them there should be is the roster's business.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ..core.facts import (
    Cause,
    Fact,
    HeartbeatsRead,
    RecycleRequested,
    Spawn,
    Spawned,
    SpawnFailed,
    WorkerDied,
    WorkerDraining,
    WorkerReady,
    WorkerUnable,
)
from ..core.messages import Decoder, DrainingMessage, ReadyMessage, RecycleMessage, StackLine, UnableMessage
from ..errors import reason_of
from ..events import Emit, WorkerStacks
from ..system.child import Child, ExitStatus
from ..system.descriptors import Descriptor, count_descriptors, raise_limit
from ..system.fork_context import ForkContext
from ..system.memory import OomKills
from ..system.processes import RESOURCE_ERRNOS, System
from ..system.scoreboard import FleetSetting, Row, Scoreboard, WorkerStat
from ..system.tether import Tether
from ..text import escape_ascii

#: Rows of the scoreboard, for each worker that is wanted at the start, and at least: its successors, and those that
#: drain meanwhile; and more workers that may be wanted later. Untouched memory costs nothing.
ROWS_PER_WORKER = 4
MIN_ROWS = 128
#: The signal that makes a worker tell its stacks.
DUMP_SIGNAL = signal.SIGUSR2
#: Lines of stacks kept of one worker.
STACK_LINES = 400
#: Descriptors by which a claim of connections may exceed what is counted a moment later.
CLAIM_SLACK = 64
#: Who says so many bytes at once has gone mad: it is not heard again before so many seconds have passed.
FLOOD_BYTES = 16 * 1024
MUTE_SECONDS = 0.5


class ChildStarted(BaseException):
    """Unwinds the supervisor's stack in a child."""

    def __init__(self, seat: ForkContext) -> None:
        self.seat = seat


@dataclass(slots=True)
class _Process:
    """One worker."""

    number: int
    child: Child
    status: Descriptor
    tether: Tether
    decoder: Decoder
    slot: int
    row: Row
    stacks: list[str] = field(default_factory=list)
    ended: bool = False
    """The status pipe's end was reached."""
    muted_until: float = 0.0
    """Not listened to before, as it talks without end."""


class Workers:
    """Owns every worker process from its fork until it is reaped. `close` kills those that are left."""

    def __init__(self, system: System, emit: Emit, workers: int) -> None:
        self._system = system
        self._emit = emit
        self._pid = os.getpid()
        self._lifeline = system.lifeline()
        self._scoreboard = Scoreboard(max(MIN_ROWS, ROWS_PER_WORKER * workers), peers=raise_limit())
        self._published: tuple[list[int], list[int]] = ([], [])
        self._free_rows: list[int] = []
        self._used_rows = 0
        self._oom_kills = OomKills()
        self._processes: dict[int, _Process] = {}

    def close(self) -> None:
        """Nobody stays behind, also when what ends here is a bug."""
        for process in list(self._processes.values()):
            process.child.signal(signal.SIGKILL)
            process.child.wait()
            self._forget(process)
        self._lifeline.close()
        self._scoreboard.close()

    # --- what the supervisor reads ------------------------------------------------------------------------------------

    def rows(self) -> dict[int, Row]:
        """The row of each worker on the scoreboard."""
        return {process.number: process.row for process in self._processes.values()}

    def heartbeats(self) -> HeartbeatsRead:
        """How long ago each loop last turned."""
        beats = {process.number: process.row[WorkerStat.HEARTBEAT] for process in self._processes.values()}
        now = time.monotonic_ns()
        # One in the future was never written by a loop that turned.
        ages = {each: now - beat if beat <= now else now for each, beat in beats.items() if beat}
        return HeartbeatsRead({each: age / 1e9 for each, age in ages.items()})

    def impostors(self) -> list[Fact]:
        """Workers that claim more connections than they have descriptors, while the fleet is at its limit: what they
        claim, the others may not accept."""
        limit = self._scoreboard.settings[FleetSetting.MAX_CONNECTIONS]
        claims = [(process, process.row.open) for process in self._processes.values()]
        if not limit or sum(claimed for _, claimed in claims) < limit:
            return []
        facts: list[Fact] = []
        for process, claimed in claims:
            held = count_descriptors(process.child.pid)
            # Read after the claim, and some may have been closed in between: no honest worker is far off.
            if held is not None and claimed > held + CLAIM_SLACK:
                reason = f"it claims {claimed} connections, and has {held} descriptors"
                facts.append(RecycleRequested(process.number, reason))
        return facts

    def publish(self, field: FleetSetting, value: int) -> None:
        """Tell all workers, by the scoreboard."""
        if self._scoreboard.settings[field] != value:
            self._scoreboard.settings[field] = value

    def publish_rows(self, accepting: Collection[int]) -> None:
        """Tell all workers who accepts, and who else may have connections."""
        rows = {process.number: process.row.number for process in self._processes.values()}
        lists = ([rows[w] for w in rows if w in accepting], [rows[w] for w in rows if w not in accepting])
        if lists != self._published:
            self._published = lists
            self._scoreboard.publish(*lists)

    def most(self) -> int:
        """How many workers there can be, with a successor each."""
        return self._scoreboard.rows // 2

    def pids(self) -> set[int]:
        """Of all that have not been reaped."""
        return {process.child.pid for process in self._processes.values()}

    # --- news of them -------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        """What to poll for: descriptors and events."""
        wanted: dict[int, int] = {}
        for process in self._processes.values():
            if not process.ended and now >= process.muted_until:
                wanted[process.status.fileno()] = select.POLLIN
            if process.child.pollable:
                wanted[process.child.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """When one is listened to again."""
        return min(
            (p.muted_until for p in self._processes.values() if not p.ended and now < p.muted_until), default=None
        )

    def must_poll_exit(self) -> bool:
        """Whether the end of one cannot be polled for: without pidfds only SIGCHLD tells, and it can get lost."""
        return any(not process.child.pollable for process in self._processes.values())

    def take(self, ready: set[int], now: float) -> Iterator[Fact]:
        """What they said, and who has died; `ready` are descriptors that a poll named.

        One by one: what follows from a fact may concern a worker whose death has not been told yet.
        """
        for process in list(self._processes.values()):
            if not process.child.pollable or not ready.isdisjoint(self._descriptors(process)):
                yield from self._look_after(process, now)

    def _descriptors(self, process: _Process) -> list[int]:
        pidfd = [process.child.fileno()] if process.child.pollable else []
        return pidfd if process.ended else [process.status.fileno(), *pidfd]

    def _look_after(self, process: _Process, now: float) -> Iterator[Fact]:
        death = process.child.reap()
        # What it said comes first: a worker that cannot start says why, and ends.
        yield from self._listen(process, now)
        if death is not None:
            self._forget(process)
            kind = self._kind(death)
            cause = death.describe() + (", out of memory" if kind is Cause.MEMORY else "")
            yield WorkerDied(process.number, cause, death.clean, kind)

    def _listen(self, process: _Process, now: float) -> list[Fact]:
        """Once, and at most what fits in a pipe: a worker that talks without end must not hold up the rest."""
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
            if isinstance(message, ReadyMessage):
                facts.append(WorkerReady(process.number))
            elif isinstance(message, DrainingMessage):
                facts.append(WorkerDraining(process.number))
            elif isinstance(message, RecycleMessage):
                facts.append(RecycleRequested(process.number, escape_ascii(message.reason)))
            elif isinstance(message, StackLine):
                if len(process.stacks) < STACK_LINES:
                    process.stacks.append(escape_ascii(message.text))
            elif isinstance(message, UnableMessage):
                facts.append(WorkerUnable(process.number, message.reason))
        return facts

    def _kind(self, death: ExitStatus) -> Cause:
        """What the system says of a death."""
        if death.signal is None:
            return Cause.EXIT
        if death.core:
            return Cause.CORE
        if death.signal == signal.SIGKILL and self._oom_kills.attribute(self._system.monotonic()):
            return Cause.MEMORY
        return Cause.SIGNAL

    def _forget(self, process: _Process) -> None:
        if process.stacks:
            self._emit(WorkerStacks(process.slot, process.child.pid, "\n".join(process.stacks)))
        process.child.close()
        process.status.close()
        process.tether.close()
        self._free_rows.append(process.row.number)
        self._processes.pop(process.number, None)

    # --- what is done to them -----------------------------------------------------------------------------------------

    def signal(self, worker: int, number: int) -> None:
        """Send a signal to one of them."""
        self._processes[worker].child.signal(number)

    def signal_all(self, number: int) -> None:
        """Send a signal to each."""
        for process in self._processes.values():
            process.child.signal(number)

    def spawn(self, command: Spawn) -> Fact:
        """Fork a worker: Spawned, or SpawnFailed if the system lacks a resource. Raise ChildStarted in the child.
        Raises OSError for a failure of another kind; nothing has changed then."""
        row = self._take_row()
        if row is None:
            return SpawnFailed(command.worker, f"{self._scoreboard.rows} workers are there already")
        with contextlib.ExitStack() as undo:
            try:
                reader, writer = (Descriptor(fd) for fd in os.pipe())
                undo.callback(reader.close)
                undo.callback(writer.close)
                os.set_blocking(reader.fileno(), False)
                tether = Tether()
                undo.callback(tether.close)
                self._system.close_in_child(reader, tether.parent_end)
                child = self._system.fork()
            except (OSError, MemoryError) as exc:
                self._free_rows.append(row.number)
                if isinstance(exc, OSError) and exc.errno not in RESOURCE_ERRNOS:
                    raise
                return SpawnFailed(command.worker, reason_of(exc))
            undo.pop_all()
        if child is None:
            self._processes.clear()
            raise ChildStarted(self._seat(command, writer, tether, row.number))
        writer.close()
        tether.close_child_end()
        child.lead_group()
        process = _Process(command.worker, child, reader, tether, Decoder(), command.slot, row)
        self._processes[command.worker] = process
        return Spawned(command.worker, child.pid)

    def _seat(self, command: Spawn, status: Descriptor, tether: Tether, row: int) -> ForkContext:
        return ForkContext(
            slot=command.slot,
            generation=command.generation,
            parent=self._pid,
            status=status,
            lifeline=self._lifeline,
            tether=tether,
            scoreboard=self._scoreboard,
            row=row,
            dump_signal=DUMP_SIGNAL,
        )

    def _take_row(self) -> Row | None:
        if self._free_rows:
            return self._scoreboard.clear(self._free_rows.pop())
        if self._used_rows < self._scoreboard.rows:
            self._used_rows += 1
            return self._scoreboard.row(self._used_rows)
        return None
