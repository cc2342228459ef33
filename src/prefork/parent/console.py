"""What an operator's console asks of the supervisor besides the status: connections to workers, stacks, suspension.

Never in the path of the data: a client talks to the workers' consoles itself (`core/console_protocol.py`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.control_protocol import ALL_SLOTS, Request
from ..core.facts import Fact, Failure, RecycleRequested
from ..core.roster import Roster
from ..core.states import Worker, WorkerState
from ..events import Emit, Resumed, Suspended
from ..system.scoreboard import FleetSetting
from .control_server import ControlConnection, ControlSocket
from .workers import Workers

#: Workers that one client is connected to; SCM_RIGHTS takes 253 descriptors. Of further ones it asks the kernel.
MAX_ATTACHED = 200
#: Seconds that a worker has to write the stacks of its threads.
DUMP_SECONDS = 0.06
#: Clients that wait for stacks.
MAX_DUMPS = 8


@dataclass(slots=True)
class _Dump:
    """A client that waits for the stacks of workers: how many lines each had written before."""

    client: ControlConnection
    due: float
    lines_before: dict[int, int]


class Console:
    """Answers for `workers`. Owns the clients that wait for stacks.

    `listeners` returns the addresses, `predecessor` the supervisor that drains beside this one, and `refusal` why
    accepting cannot be suspended or resumed now; `apply` takes facts.
    """

    def __init__(
        self,
        workers: Workers,
        roster: Roster,
        emit: Emit,
        control: ControlSocket | None,
        listeners: Callable[[], list[str]],
        predecessor: Callable[[], int | None],
        refusal: Callable[[], Failure | None],
        apply: Callable[[Fact], None],
    ) -> None:
        self._workers = workers
        self._roster = roster
        self._emit = emit
        self._control = control
        self._listeners = listeners
        self._predecessor = predecessor
        self._refusal = refusal
        self._apply = apply
        self._dumps: list[_Dump] = []

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        return {}

    def next_due(self, now: float) -> float | None:
        return min((each.due for each in self._dumps), default=None)

    def collect(self, now: float) -> None:
        """Answer the clients whose workers have had their time."""
        due = [each for each in self._dumps if now >= each.due]
        self._dumps = [each for each in self._dumps if now < each.due]
        for each in due:
            self._send_dump(each)

    def answer(self, client: ControlConnection, request: Request, by: str, now: float) -> None:
        """Carry out a request, and reply to its client, at once or when the answer is there. `by` names the sender."""
        sockets: list[socket.socket] = []
        outcome: dict[str, Any] | Failure | None
        match request.command:
            case "attach":
                outcome, sockets = self._attach()
            case "dump":
                outcome = self._dump(client, request.worker, now)
            case "recycle":
                outcome = self._recycle(by, request.worker)
            case command:
                outcome = self._suspend(by, command == "suspend")
        if outcome is not None and self._control is not None:
            self._control.reply(client, _reply(outcome), sockets)

    # --- connections to workers ---------------------------------------------------------------------------------------

    def _attach(self) -> tuple[dict[str, Any], list[socket.socket]]:
        """Return the workers, and a connection to the console of each that is marked as attached, in this order."""
        sockets: list[socket.socket] = []
        workers = []
        for worker in self._roster.workers.values():
            if worker.pid:
                # One that starts has no loop yet, and would not answer.
                answers = worker.state is not WorkerState.STARTING and len(sockets) < MAX_ATTACHED
                sock = self._workers.connect(worker.id) if answers else None
                has_console = self._workers.has_console(worker.id)
                workers.append({**_name(worker), "attached": sock is not None, "console": has_console})
                sockets += [] if sock is None else [sock]
        return {"workers": workers, "listeners": self._listeners(), "predecessor": self._predecessor()}, sockets

    # --- stacks of threads --------------------------------------------------------------------------------------------

    def _dump(self, client: ControlConnection, slot: int, now: float) -> Failure | None:
        """Have the workers of a slot write the stacks of their threads, and answer in DUMP_SECONDS. Return a refusal.

        `slot` is ALL_SLOTS for all workers at once, so that this takes no longer when every one of them hangs. Python
        need not run for it: the answer comes from a signal handler in C.
        """
        if len(self._dumps) >= MAX_DUMPS:
            return Failure(f"{MAX_DUMPS} clients are waiting for stacks already")
        slots = {each.slot for each in self._roster.workers.values()} if slot == ALL_SLOTS else {slot}
        workers = [each for number in slots for each in self._in_slot(number) if self._can_dump(each)]
        if not workers:
            return Failure(f"slot {slot} has no worker that runs")
        before = {each.id: len(self._workers.stack_lines(each.id)) for each in workers}
        for worker_id in before:
            self._workers.dump(worker_id)
        self._dumps.append(_Dump(client, now + DUMP_SECONDS, before))
        return None

    def _can_dump(self, worker: Worker) -> bool:
        # Before it has started, and in a program, nothing may handle the signal.
        return worker.state is not WorkerState.STARTING and self._workers.has_console(worker.id)

    def _send_dump(self, dump: _Dump) -> None:
        dumped = []
        for worker_id, before in dump.lines_before.items():
            worker = self._roster.workers.get(worker_id)
            if worker is not None:
                # Those of a worker that hangs are logged at its end as well.
                keep = worker.state is WorkerState.HUNG
                dumped.append({**_name(worker), "lines": self._workers.take_stack_lines(worker_id, before, keep)})
        if self._control is not None:
            self._control.reply(dump.client, {"ok": True, "workers": dumped})

    def _in_slot(self, slot: int) -> list[Worker]:
        return [each for each in self._roster.workers.values() if each.slot == slot and each.pid]

    # --- accepting and recycling --------------------------------------------------------------------------------------

    @property
    def suspended(self) -> bool:
        return bool(self._workers.published(FleetSetting.SUSPENDED))

    def _suspend(self, by: str, suspended: bool) -> dict[str, Any] | Failure:
        """Have all workers stop accepting, or go on, at once. Return whether that changed anything, and whether there
        are programs, which may accept by themselves."""
        refusal = self._refusal()
        if refusal is not None:
            # A successor that starts was told how it was before.
            return refusal
        changed = self.suspended is not suspended
        self._workers.publish(FleetSetting.SUSPENDED, int(suspended))
        if changed:
            self._emit(Suspended(by) if suspended else Resumed(by))
        programs = any(each.pid and not self._workers.has_console(each.id) for each in self._roster.workers.values())
        return {"suspended": suspended, "changed": changed, "program": programs}

    def _recycle(self, by: str, slot: int) -> dict[str, Any] | Failure:
        """Have the worker of a slot replaced by another of its generation."""
        refusal = self._roster.refusal()
        if refusal is not None:
            return refusal
        ready = [each for each in self._in_slot(slot) if each.state is WorkerState.READY]
        if not ready:
            return Failure(f"slot {slot} has no worker that is ready")
        self._apply(RecycleRequested(max(each.id for each in ready), f"requested ({by})"))
        return {"slot": slot}


def _reply(outcome: dict[str, Any] | Failure) -> dict[str, Any]:
    return {"ok": False, "error": outcome.reason} if isinstance(outcome, Failure) else {"ok": True, **outcome}


def _name(worker: Worker) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": worker.state.name.lower(),
    }
