"""An upgrade: another supervisor, of the program as it is installed now, is started beside this one and takes over.

Pure: facts and the time go in, commands come out. Who is started, and what it is given, is the supervisor's business;
what becomes of the workers is the roster's, which is told to hand over and to take back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..events import Event, RolledBack, Upgraded, UpgradeFailed, UpgradeIgnored, Upgrading


class Step(enum.Enum):
    """How far it is."""

    IDLE = enum.auto()
    STARTING = enum.auto()
    """The successor was started, and has not said that it serves. Ours serve."""
    LEADING = enum.auto()
    """It serves, and ours drain. Should it die now, we take back."""
    ENDING = enum.auto()
    """We stop. A successor that had not come to serve was asked to end as well, and is waited for."""
    LEFT = enum.auto()
    """We stop, and the successor goes on, or stops for itself; it is no business of ours any more."""


@dataclass(frozen=True, slots=True)
class UpgradeAsked:
    """By a signal or a command; `obstacle` is why it cannot be, "" if it can. `patience` is the seconds that the
    successor has until it serves, and `farewell` those that it has to end when it was asked to."""

    by: str
    obstacle: str = ""
    patience: float = 75.0
    farewell: float = 46.0


@dataclass(frozen=True, slots=True)
class SuccessorStarted:
    """Its process is there; the answer to Launch."""

    pid: int


@dataclass(frozen=True, slots=True)
class SuccessorReady:
    """It says that all of its workers accept."""


@dataclass(frozen=True, slots=True)
class SuccessorUnable:
    """It says why it cannot start, or that it could not be started at all: the other answer to Launch."""

    reason: str


@dataclass(frozen=True, slots=True)
class SuccessorStopping:
    """It says that it was asked to stop."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class SuccessorDied:
    """Its process has ended and has been reaped."""

    cause: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """We stop, whatever for."""

    at_once: bool


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Something may be due."""


Fact = (
    UpgradeAsked
    | SuccessorStarted
    | SuccessorReady
    | SuccessorUnable
    | SuccessorStopping
    | SuccessorDied
    | Stopping
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the successor. Answered by SuccessorStarted or SuccessorUnable and SuccessorDied, before any other fact."""


@dataclass(frozen=True, slots=True)
class Signal:
    """To the successor: to end, or `at_once` by SIGKILL."""

    at_once: bool


@dataclass(frozen=True, slots=True)
class HandOver:
    """It has everything: our workers drain."""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """It is gone: ours serve again."""


@dataclass(frozen=True, slots=True)
class StopToo:
    """Whoever stopped it wants the service to stop."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Tell who observes."""

    event: Event


Command = Launch | Signal | HandOver | TakeBack | StopToo | EmitEvent


class Upgrade:
    """One at a time."""

    def __init__(self) -> None:
        self.step = Step.IDLE
        self.pid = 0
        self._patience = 0.0
        self._farewell = 0.0
        self._reason = ""
        self._kill_at: float | None = None

    def next_due(self) -> float | None:
        """When `TimePassed` will have something to do."""
        return self._kill_at

    def waits(self) -> bool:
        """Whether this process must not end yet: the successor is to be gone first, or may be the cure."""
        return self.step in (Step.STARTING, Step.ENDING)

    def apply(self, fact: Fact, now: float) -> list[Command]:
        """What to do about `fact`; `now` is seconds on a clock that never goes back."""
        match fact:
            case UpgradeAsked():
                return self._asked(fact, now)
            case SuccessorStarted():
                self.pid = fact.pid
            case SuccessorUnable():
                self._reason = self._reason or fact.reason
            case SuccessorReady() if self.step is Step.STARTING and not self._reason:
                self.step = Step.LEADING
                self._kill_at = None
                return [EmitEvent(Upgraded(self.pid)), HandOver()]
            case SuccessorStopping():
                return self._successor_stops(fact)
            case SuccessorDied():
                return self._died(fact)
            case Stopping():
                return self._stop(fact, now)
            case TimePassed() if self._kill_at is not None and now >= self._kill_at:
                self._kill_at = None
                self._reason = self._reason or f"it does not serve after {self._patience:g} s"
                return [Signal(at_once=True)]
        return []

    def _asked(self, fact: UpgradeAsked, now: float) -> list[Command]:
        obstacle = fact.obstacle
        if self.step is Step.STARTING:
            obstacle = "an upgrade is under way"
        elif self.step is not Step.IDLE:
            obstacle = f"this supervisor has handed over to {self.pid}" if self.step is Step.LEADING else "it stops"
        if obstacle:
            return [EmitEvent(UpgradeIgnored(fact.by, obstacle))]
        self.step = Step.STARTING
        self.pid = 0
        self._reason = ""
        self._patience, self._farewell = fact.patience, fact.farewell
        self._kill_at = now + self._patience
        return [EmitEvent(Upgrading(fact.by)), Launch()]

    def _successor_stops(self, fact: SuccessorStopping) -> list[Command]:
        if self.step is Step.LEADING:
            self.step = Step.LEFT
        if self.step is Step.LEFT:
            return [StopToo(fact.at_once)]
        self._reason = self._reason or "it was asked to stop"
        return []

    def _died(self, fact: SuccessorDied) -> list[Command]:
        step, self.step = self.step, Step.IDLE
        self._kill_at = None
        if step is Step.STARTING:
            return [EmitEvent(UpgradeFailed(self._reason or f"it died while it started: {fact.cause}"))]
        if step is Step.LEADING:
            return [EmitEvent(RolledBack(self.pid, fact.cause)), TakeBack()]
        self.step = Step.LEFT
        return []

    def _stop(self, fact: Stopping, now: float) -> list[Command]:
        if self.step is Step.STARTING:
            self.step = Step.ENDING
            self._kill_at = now + self._farewell
            return [Signal(fact.at_once)]
        if self.step is Step.ENDING:
            return [Signal(at_once=True)] if fact.at_once else []
        self.step = Step.LEFT
        return []
