"""The words of the roster: the states of a worker, its slot, and a replacement that is under way.

Data and the table of what may follow what. When anything changes is decided in `roster.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from .restart_policy import History


class State(enum.Enum):
    """The life of a worker; `_MAY_BECOME` says what may follow what."""

    FORKING = enum.auto()
    STARTING = enum.auto()
    READY = enum.auto()
    DRAINING = enum.auto()
    """It was sent SIGTERM."""
    HUNG = enum.auto()
    """Its loop does not turn: it was asked for its stacks, and is killed in a moment."""
    KILLED = enum.auto()
    """It was sent SIGKILL, and is still to be reaped."""


_MAY_BECOME = {
    State.FORKING: {State.STARTING},
    State.STARTING: {State.READY, State.DRAINING, State.KILLED},
    State.READY: {State.DRAINING, State.HUNG, State.KILLED},
    State.DRAINING: {State.HUNG, State.KILLED},
    State.HUNG: {State.KILLED},
    State.KILLED: set[State](),
}


class Phase(enum.Enum):
    """The life of the roster. It goes forward, but for LEAVING to SERVING: the other supervisor has died."""

    BOOTING = enum.auto()
    """No worker has ever been ready: one that cannot start ends the program."""
    SERVING = enum.auto()
    LEAVING = enum.auto()
    """Another supervisor serves now, and ours are draining."""
    STOPPING = enum.auto()
    FINISHED = enum.auto()


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient to be, in seconds."""

    drain: float = 30.0
    """Until open connections are aborted at a stop."""
    boot: float = 60.0
    """Until a worker has to accept."""
    hang: float = 30.0
    """Until a loop that does not turn counts as hung."""


@dataclass(slots=True)
class Worker:
    """One process."""

    number: int
    slot: int
    generation: int
    timing: Timing
    """That of its generation: it drains and beats by it itself."""
    state: State = State.FORKING
    pid: int = 0
    ready_since: float | None = None
    accepting: bool = False
    """From when it is ready until it says that it has stopped, which is a moment after it was asked to drain."""
    unable: str = ""
    spent: str = ""
    """Why it wants to be replaced while it goes on serving."""
    spent_since: float = 0.0
    fate: KillReason | None = None
    """What we have done to it, and so the cause of its death."""
    kill_at: float | None = None
    """When it is killed if it is still there: it has not become ready, or not ended, in time."""

    def become(self, state: State) -> None:
        assert state in _MAY_BECOME[self.state], f"worker {self.number}: {self.state.name} to {state.name}"
        self.state = state


class KillReason(enum.Enum):
    """Why a worker is killed."""

    HANG = enum.auto()
    BOOT = enum.auto()
    """It was not ready in time."""
    OVERDUE = enum.auto()
    """It had been asked to end, and did not."""
    ENDING = enum.auto()
    """The server stops at once."""


@dataclass(slots=True)
class Slot:
    """A place for one worker."""

    number: int
    history: History = field(default_factory=History)
    due: float | None = None
    """When a worker is to be forked; None while there is one, or none is wanted."""
    refused: int = 0
    """Forks in a row that the system refused."""
    generation: int = 0
    """Of the worker that is forked when it is due: the last one that has served here was of it."""
    occupant: int | None = None
    """The worker that serves here, or is to; one that was retired is none any more."""


class Purpose(enum.Enum):
    """Why workers are replaced while they are well."""

    RELOAD = enum.auto()
    """All of them, by a new generation."""
    RECYCLE = enum.auto()
    """One that has served enough, by another of its generation."""


@dataclass(slots=True)
class RollingRestart:
    """One slot at a time: its successor is forked, proves that it is ready, and only then its predecessor drains."""

    purpose: Purpose
    left: list[int]
    """Slots that still need a new worker."""
    due_before: float = 0.0
    """When the slot of the successor was due for one by itself, if it was."""
    successor: int | None = None
    """The worker that is to prove itself."""
    retired: set[int] = field(default_factory=set)
    """Those that were replaced. When the last of them has stopped accepting it is done: whoever connects then meets a
    new one."""
    again: tuple[str, Timing] | None = None
    """A reload was asked for meanwhile, by whom and how patient: what has been replaced already may be old again."""
