"""An upgrade: a second supervisor, of the program as it is installed now, starts beside this one and takes over.

Pure: facts and the time go in, commands come out. `parent/takeover.py` carries the commands out; `roster.py` decides
what becomes of the workers.

The hand-over, step by step. "Old" is this supervisor, "new" is its successor. No connection is lost whichever of them
dies, and at any moment at least one of them owns the unix sockets' files, the pidfile and the control socket.

1. STARTING. Old starts the same command again with its listening sockets (system/handover.py) and one end of a socket
   pair. Both hold the sockets from here on; only old accepts. New binds what its settings add, forks its workers, and
   reports READY when all of them accept. If new dies, hangs or reports that it is unable, old kills it if necessary,
   takes the files back (new may have come as far as writing the pidfile), and nothing else has happened.
2. READY. New takes the files over *before* it sends READY, because old gives them up when it reads it. READY must not
   get lost, otherwise both would believe that they serve: `Predecessor` resends what the kernel did not take.
3. LEADING. Old gives the files up, stops listening to commands, and its workers drain. If new dies before the last of
   them has ended, old forks workers and serves again (RollBack), with the sockets that it still has. New in turn
   keeps every inherited socket meanwhile, even those that it does not want.
4. SETTLED, after ROLL_BACK_TIME. Workers of old may drain for days. Old closes its sockets and tells new, which then
   closes those that it does not want; otherwise clients of a removed address would wait in its queue. If new dies now,
   old does not serve again.
5. A stop is passed on. If old is asked to stop in STARTING, it ends new first and waits for that (ENDING), otherwise
   new could come to serve afterwards and outlive the stop. If new is asked to stop in LEADING, it reports that to
   old, which stops as well instead of serving again (LEFT).

Old does not end in STARTING, even if its last worker has: new may be the cure.

Old may drain for days, but there are two supervisors at most. If new is asked to upgrade in turn, it has old stop
(LEFT), so that the connections there get the drain timeout of a stop, and starts its own successor when old has ended.
From then on old does not serve again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..events import RolledBack, Upgraded, UpgradeFailed, Upgrading
from .facts import EmitEvent, Failure, StopRequested, TimePassed
from .states import Timing, move
from .time_limits import ROLL_BACK_TIME, SUPERVISOR_START_MARGIN, successor_start_timeout, successor_stop_timeout


class Step(enum.Enum):
    """How far an upgrade is, seen from the supervisor that is to be replaced."""

    IDLE = enum.auto()
    STARTING = enum.auto()
    """The successor was started and does not serve yet. The workers here serve."""
    LEADING = enum.auto()
    """The successor serves, and the workers here drain. If it dies now, this supervisor serves again."""
    SETTLED = enum.auto()
    """The successor serves, and the workers here drain. It has the sockets for itself."""
    ENDING = enum.auto()
    """This supervisor stops. The successor did not serve yet, was asked to end as well, and is waited for."""
    LEFT = enum.auto()
    """This supervisor stops, and no longer cares about the successor, which serves or stops for itself."""


_NEXT_STEPS = {
    Step.IDLE: {Step.STARTING, Step.LEFT},
    Step.STARTING: {Step.LEADING, Step.ENDING, Step.IDLE},
    Step.LEADING: {Step.LEFT, Step.IDLE, Step.SETTLED},
    Step.SETTLED: {Step.LEFT},
    Step.ENDING: {Step.LEFT},
    Step.LEFT: {Step.LEFT},
}

# --- facts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpgradeRequested:
    """A signal or a command asks for an upgrade; `timing` is that of the workers, and so of the successor's."""

    by: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class SuccessorStarted:
    """The successor's process runs. The answer to Launch."""

    pid: int


@dataclass(frozen=True, slots=True)
class SuccessorReady:
    """The successor reports that all of its workers accept."""


@dataclass(frozen=True, slots=True)
class SuccessorUnable:
    """The successor reports why it cannot start, or it could not be started: the other answer to Launch."""

    reason: str


@dataclass(frozen=True, slots=True)
class SuccessorStopping:
    """The successor reports that it was asked to stop."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class SuccessorDied:
    """The successor's process ended and was reaped."""

    cause: str


UpgradeFact = (
    UpgradeRequested
    | SuccessorStarted
    | SuccessorReady
    | SuccessorUnable
    | SuccessorStopping
    | SuccessorDied
    | StopRequested
    | TimePassed
)

# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the successor. Answered by SuccessorStarted, or by SuccessorUnable and SuccessorDied, before any other
    fact."""


@dataclass(frozen=True, slots=True)
class SignalSuccessor:
    """Send the successor SIGTERM, or SIGKILL if `at_once`."""

    at_once: bool


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give everything up, because the successor `pid` serves: the workers here are to drain."""

    pid: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Own everything again, because the successor is gone before it served."""

    reason: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """Own everything again and serve, because the successor `pid` is gone after it served."""

    pid: int
    cause: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Give the sockets up, and tell the successor."""


@dataclass(frozen=True, slots=True)
class StopToo:
    """Stop as well, because the successor was asked to stop the service."""

    at_once: bool = False


UpgradeCommand = Launch | SignalSuccessor | HandOver | Abandon | RollBack | Settle | StopToo | EmitEvent


class Upgrade:
    """Decides about one upgrade at a time. Facts enter by `apply` only."""

    def __init__(self) -> None:
        self.step = Step.IDLE
        self.pid = 0
        """Of the last successor."""
        self._timing = Timing()
        self._failure: str | None = None
        """Why the successor is not to serve any more, as far as is known."""
        self._due_at: float | None = None

    def next_due(self) -> float | None:
        return self._due_at

    def must_wait(self) -> bool:
        """Return whether this process must not end yet: its successor has to be gone first, or may come to serve."""
        return self.step in (Step.STARTING, Step.ENDING)

    def refusal(self) -> Failure | None:
        match self.step:
            case Step.IDLE:
                return None
            case Step.STARTING:
                return Failure("an upgrade is under way")
            case Step.LEADING | Step.SETTLED:
                return Failure(f"this supervisor has handed over to {self.pid}")
        return Failure("the server is stopping")

    def apply(self, fact: UpgradeFact, now: float) -> list[UpgradeCommand]:
        """Return what to do about `fact`. `now` is the time in seconds on a clock that never goes back.

        Raises RuntimeError for UpgradeRequested while there is a `refusal`.
        """
        match fact:
            case UpgradeRequested():
                return self._requested(fact, now)
            case SuccessorStarted():
                self.pid = fact.pid
            case SuccessorUnable():
                self._failure = self._failure or fact.reason
            case SuccessorReady() if self.step is Step.STARTING and self._failure is None:
                self._enter(Step.LEADING)
                self._due_at = now + ROLL_BACK_TIME
                return [EmitEvent(Upgraded(self.pid)), HandOver(self.pid)]
            case SuccessorStopping():
                return self._successor_stopping(fact)
            case SuccessorDied():
                return self._died(fact)
            case StopRequested():
                return self._stop(fact, now)
            case TimePassed() if self._due_at is not None and now >= self._due_at:
                return self._overdue()
        return []

    def _overdue(self) -> list[UpgradeCommand]:
        if self.step is Step.LEADING:
            self._enter(Step.SETTLED)
            return [Settle()]
        self._due_at = None
        timeout = successor_start_timeout(self._timing.boot)
        option = f"--boot-timeout plus {SUPERVISOR_START_MARGIN:g} s"
        self._failure = self._failure or f"the new supervisor did not serve within {timeout:g} s ({option})"
        return [SignalSuccessor(at_once=True)]

    def _requested(self, fact: UpgradeRequested, now: float) -> list[UpgradeCommand]:
        self._enter(Step.STARTING)
        self.pid = 0
        self._failure = None
        self._timing = fact.timing
        self._due_at = now + successor_start_timeout(fact.timing.boot)
        return [EmitEvent(Upgrading(fact.by)), Launch()]

    def _successor_stopping(self, fact: SuccessorStopping) -> list[UpgradeCommand]:
        if self.step in (Step.LEADING, Step.SETTLED, Step.LEFT):
            self._enter(Step.LEFT)
            return [StopToo(fact.at_once)]
        self._failure = self._failure or "the new supervisor was asked to stop"
        return []

    def _died(self, fact: SuccessorDied) -> list[UpgradeCommand]:
        step = self.step
        self._enter(Step.IDLE if step in (Step.STARTING, Step.LEADING) else Step.LEFT)
        if step is Step.STARTING:
            reason = self._failure or f"the new supervisor died while starting: {fact.cause}"
            return [Abandon(reason), EmitEvent(UpgradeFailed(reason))]
        if step is Step.LEADING:
            return [EmitEvent(RolledBack(self.pid, fact.cause)), RollBack(self.pid, fact.cause)]
        return []

    def _stop(self, fact: StopRequested, now: float) -> list[UpgradeCommand]:
        match self.step:
            case Step.STARTING:
                self._enter(Step.ENDING)
                # It may be a lame duck first, because it became ready a moment ago.
                drain = self._timing.drain_delay.seconds + self._timing.drain
                self._due_at = now + successor_stop_timeout(drain, self._timing.stop)
                return [SignalSuccessor(fact.at_once)]
            case Step.ENDING:
                return [SignalSuccessor(at_once=True)] if fact.at_once else []
        self._enter(Step.LEFT)
        return []

    def _enter(self, step: Step) -> None:
        self.step = move("the upgrade", _NEXT_STEPS, self.step, step)
        self._due_at = None
