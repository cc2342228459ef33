"""The workers of a program on their way to ready: what each still has to do, and what its successor will have to.

When one is ready is decided in `core/readiness.py`; the processes themselves are in `workers.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..core.facts import Fact, WorkerReady, WorkerWaits
from ..core.readiness import Readiness
from ..events import Emit, ProgramHasWorkers
from ..program import ReadyKind, ReadyWhen
from ..system.descendants import has_children
from ..system.readiness_channels import NotifySocket, ReadinessChannel, ReadyPipe
from .generations import ProgramSpec

#: Seconds after which a worker that does not listen is looked at: it may have left that to processes of its own.
HINT_AFTER = 3.0
#: Seconds between two looks at what was said where a worker says that it is ready: it, or any other process of this
#: machine, may say much.
PAUSE = 0.02


@dataclass(slots=True)
class ProgramWorker:
    """One worker that runs a program."""

    worker_id: int
    slot: int
    readiness: Readiness
    channel: ReadinessChannel | None
    """Where it says that it is ready, if it is to; owned until it does."""
    hint_at: float | None
    """When to look why it does not listen yet."""
    pid: int = 0
    announced: bool = False
    """It was reported to be ready."""
    missing: str | None = None
    """What it was last reported to lack."""
    paused_until: float = 0.0

    def interest(self, now: float) -> int | None:
        """Return the descriptor to poll for what it says; None if it is not to be read now."""
        return None if self.channel is None or now < self.paused_until else self.channel.fileno()

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None


class HeldSockets(Protocol):
    """The sockets that workers of a program have, each named by its inode."""

    def describe_sockets(self, sockets: Collection[int]) -> str: ...
    def note_listening(self, number: int) -> bool: ...
    def current_socket(self, number: int) -> int | None: ...


class Programs:
    """Knows what the workers in each slot listened on. The `held` sockets belong to others."""

    def __init__(self, held: HeldSockets, emit: Emit) -> None:
        self._held = held
        self._emit = emit
        self._listening: dict[int, frozenset[int]] = {}
        """What the last worker that became ready in each slot listened on."""

    def prepare(self, spec: ProgramSpec, worker_id: int, slot: int, now: float) -> ProgramWorker:
        """Make what a worker needs that is about to be forked. Raises OSError."""
        readiness = Readiness(spec.ready, self._wanted(slot, spec), now)
        hint_at = now + HINT_AFTER if spec.ready.kind is ReadyKind.LISTEN else None
        return ProgramWorker(worker_id, slot, readiness, _make_channel(spec.ready), hint_at)

    def _wanted(self, slot: int, spec: ProgramSpec) -> list[frozenset[int]]:
        """Return what a new worker has to listen on: what its predecessor did, or else on what --bind names."""
        known = self._listening.get(slot)
        if known is None:
            known = next(iter(self._listening.values()), frozenset())
            known -= frozenset() if slot == 0 else spec.exclusive
        # One that was damaged has been bound again, as another.
        current = {each for each in map(self._held.current_socket, known) if each is not None}
        return [frozenset({each}) for each in sorted(current)] or list(spec.named)

    def on_listening(self, worker: ProgramWorker, socket: int, now: float) -> None:
        """Note that a worker listens on one more socket, if it can: what a hostile worker makes up counts for nothing.

        Its successor has to listen on the same, unless the worker says it long after its start: hijacked later, it
        could keep every successor from being ready.
        """
        readiness = worker.readiness
        if socket in readiness.listening or not self._held.note_listening(socket):
            return
        readiness.on_listening(socket, now)
        worker.hint_at = None
        if worker.announced and readiness.is_starting(now):
            self._listening[worker.slot] = frozenset(readiness.listening)

    def next_due(self, worker: ProgramWorker, now: float) -> float | None:
        paused = None if worker.channel is None or worker.paused_until <= now else worker.paused_until
        # At once, otherwise nothing may wake the supervisor before --boot-timeout, whose message tells what is missing.
        untold = None if worker.announced or worker.missing else now
        times = [each for each in (worker.readiness.next_due(), worker.hint_at, paused, untold) if each is not None]
        return min(times, default=None)

    def check(self, worker: ProgramWorker, now: float) -> Iterator[Fact]:
        """Report that a worker is ready, or what it lacks."""
        if worker.announced:
            return
        if worker.channel is not None and now >= worker.paused_until:
            worker.paused_until = now + PAUSE
            if worker.channel.says_ready(worker.pid):
                worker.readiness.on_told()
        if worker.readiness.is_ready(now):
            worker.announced, worker.hint_at = True, None
            self._listening[worker.slot] = frozenset(worker.readiness.listening)
            worker.close()
            yield WorkerReady(worker.worker_id)
            return
        if worker.hint_at is not None and now >= worker.hint_at:
            worker.hint_at = None
            if has_children(worker.pid):
                self._emit(ProgramHasWorkers(worker.slot, worker.pid))
        missing = self._missing(worker)
        if missing != worker.missing:
            worker.missing = missing
            yield WorkerWaits(worker.worker_id, missing)

    def _missing(self, worker: ProgramWorker) -> str:
        if worker.channel is not None:
            return "it has not said that it is ready (--ready)"
        groups = worker.readiness.missing()
        if groups:
            text = f"it does not listen on {' nor on '.join(map(self._held.describe_sockets, groups))}"
        else:
            text = "it does not listen on any address"
        return text if worker.hint_at is not None else f"{text}{_OWN_WORKERS if has_children(worker.pid) else ''}"


_OWN_WORKERS = ", but has started processes of its own"


def _make_channel(ready: ReadyWhen) -> ReadinessChannel | None:
    if ready.kind is ReadyKind.NOTIFY:
        return NotifySocket()
    return ReadyPipe(int(ready.number)) if ready.kind is ReadyKind.DESCRIPTOR else None
