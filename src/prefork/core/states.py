"""The states of the server, of one worker and of one slot, and the tables of what may follow what.

Data only. `roster.py` and `rolling_restart.py` decide when anything changes.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .lame_duck import NO_DELAY, DrainDelay
from .restart_policy import History

S = TypeVar("S", bound=enum.Enum)


def move(subject: str, table: Mapping[S, Collection[S]], before: S, after: S) -> S:
    """Return `after`. Raises RuntimeError unless `table` lists it among the states that may follow `before`.

    Not by an `assert`, because `python -O` removes it.
    """
    if after not in table[before]:
        raise RuntimeError(f"{subject} cannot go from {before.name} to {after.name}")
    return after


class ServerPhase(enum.Enum):
    """The life of the server. It only goes forward, but for LEAVING to SERVING: the other supervisor died."""

    BOOTING = enum.auto()
    """No worker has ever been ready. One that cannot start ends the program."""
    SERVING = enum.auto()
    LAME_DUCK = enum.auto()
    """It was asked to stop, and serves on until balancers have noticed (--drain-delay)."""
    LEAVING = enum.auto()
    """Another supervisor serves, and the workers here are draining."""
    STOPPING = enum.auto()
    FINISHED = enum.auto()


NEXT_PHASES = {
    ServerPhase.BOOTING: {ServerPhase.SERVING, ServerPhase.STOPPING},
    ServerPhase.SERVING: {ServerPhase.LAME_DUCK, ServerPhase.LEAVING, ServerPhase.STOPPING},
    ServerPhase.LAME_DUCK: {ServerPhase.STOPPING},
    ServerPhase.LEAVING: {ServerPhase.SERVING, ServerPhase.STOPPING, ServerPhase.FINISHED},
    ServerPhase.STOPPING: {ServerPhase.STOPPING, ServerPhase.FINISHED},
    ServerPhase.FINISHED: set[ServerPhase](),
}


class WorkerState(enum.Enum):
    """The life of a worker, as its supervisor sees it."""

    FORKING = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    DRAINING = enum.auto()
    """It was told to stop accepting, and to end with its connections."""
    HUNG = enum.auto()
    """Its loop does not iterate. It was asked for its stacks and is about to be killed."""
    KILLED = enum.auto()
    """It was sent SIGKILL and is not reaped yet."""


_NEXT_STATES = {
    WorkerState.FORKING: {WorkerState.STARTING},
    WorkerState.STARTING: {WorkerState.READY, WorkerState.DRAINING, WorkerState.KILLED},
    WorkerState.READY: {WorkerState.DRAINING, WorkerState.HUNG, WorkerState.KILLED},
    WorkerState.DRAINING: {WorkerState.HUNG, WorkerState.KILLED},
    WorkerState.HUNG: {WorkerState.KILLED},
    WorkerState.KILLED: set[WorkerState](),
}


class KillReason(enum.Enum):
    """Why the supervisor killed a worker, which explains the death better than its signal does."""

    HANG = enum.auto()
    BOOT_TIMEOUT = enum.auto()
    DRAIN_TIMEOUT = enum.auto()
    SHUTDOWN = enum.auto()
    """The server stops at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The timeouts of one generation of workers, in seconds."""

    drain: float = 30.0
    """From the request to stop until open connections are aborted."""
    reload_drain: float | None = None
    """The same in a worker that is replaced or no longer wanted, while the server goes on; None: never."""
    drain_delay: DrainDelay = NO_DELAY
    """From the request to stop until the workers drain."""
    stop: float = 10.0
    """For the `stop()` of a service."""
    boot: float = 60.0
    """From the fork until the worker has to accept."""
    hang: float = 30.0
    """Without an iteration of its loop, until a worker counts as hung."""


@dataclass(slots=True)
class Worker:
    """One worker process, from the decision to fork it until it is reaped."""

    id: int
    """Unique for the life of the supervisor. A slot number and a pid are used again, this is not."""
    slot: int
    generation: int
    timing: Timing
    state: WorkerState = WorkerState.FORKING
    pid: int = 0
    spawned_at: float = 0.0
    ready_since: float | None = None
    accepting: bool = False
    """From READY until the worker reports that it stopped accepting, a moment after it was asked to drain."""
    start_error: str | None = None
    missing: str = ""
    """What it still has to do before it is ready, if that is known."""
    recycle_reason: str | None = None
    """Why the worker is to be replaced, while it goes on serving."""
    recycle_since: float = 0.0
    drain_until: float | None = None
    """When its open connections are aborted, if it drains; None: never."""
    kill_reason: KillReason | None = None
    kill_at: float | None = None
    """When the worker is killed if it has not become ready, or not ended, by then."""

    def become(self, state: WorkerState) -> None:
        """Enter `state`. Raises RuntimeError if it may not follow the current one."""
        self.state = move(f"worker {self.slot} (pid {self.pid})", _NEXT_STATES, self.state, state)


@dataclass(slots=True)
class Slot:
    """A numbered place for one worker."""

    number: int
    history: History = field(default_factory=History)
    due: float | None = None
    """When to fork a worker here; None while there is one, or if none is wanted."""
    fork_failures: int = 0
    """Forks in a row that failed for lack of a system resource."""
    generation: int = 0
    """The generation to fork when due: that of the last worker which served here."""
    exits: int = 0
    """Deaths of workers here that were not asked to end."""
    last_exit: str = ""
    """What the last of them died of, in words."""
    occupant: int | None = None
    """The id of the worker that serves here, or is to. A worker replaced by a successor is no occupant."""
