"""Both ends of an upgrade as one supervisor has them: the predecessor it replaces, the successor that replaces it.

Carries out the commands of `core/upgrade.py`, whose essay describes the hand-over. It never calls the supervisor.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from typing import Any

from ..core.facts import EmitEvent, Fact, Failure, HandedOver, StopRequested, SuccessorRolledBack, TimePassed
from ..core.messages import (
    LeasesGivenUpMessage,
    ReadyMessage,
    ReopenLogsMessage,
    SettledMessage,
    StoppingMessage,
    UnableMessage,
)
from ..core.progress import Progress
from ..core.states import Timing
from ..core.upgrade import (
    Abandon,
    HandOver,
    Launch,
    RollBack,
    Settle,
    SignalSuccessor,
    Step,
    StopToo,
    Upgrade,
    UpgradeCommand,
    UpgradeFact,
    UpgradeRequested,
)
from ..events import Emit, RolledBack, TookOver, UpgradeFailed, UpgradeWaits
from ..system.file_ownership import FileOwnership
from ..system.processes import System
from .control_server import ControlSocket
from .generations import Resources
from .upgrade import Predecessor, Successor


class Inheritance(enum.Enum):
    """How far this supervisor has replaced its predecessor. It only goes forward."""

    PENDING = enum.auto()
    """The predecessor serves."""
    TAKEN = enum.auto()
    """This supervisor serves. The predecessor still needs the sockets that it would serve with again."""
    SETTLED = enum.auto()
    """The predecessor has given its sockets up, or there is none."""


class Takeover:
    """Owns the connections to predecessor and successor, and says which of the three owns the shared files.

    `fleet` gives the number of workers that a successor is to have, and whether accepting is suspended.
    """

    def __init__(
        self,
        system: System,
        resources: Resources[Any],
        emit: Emit,
        fleet: Callable[[], tuple[int, bool]],
        control: ControlSocket | None,
        predecessor: Predecessor | None,
    ) -> None:
        self._resources = resources
        self._emit = emit
        self._control = control
        self._upgrade = Upgrade()
        self._successor = Successor(system, lambda channel: resources.export(channel, *fleet()))
        self._predecessor = predecessor
        self._inheritance = Inheritance.SETTLED
        self.owns_files = predecessor is None
        """Whether this supervisor answers at the control socket and at the address of --metrics."""
        self._requested: UpgradeRequested | None = None
        """An upgrade that waits for the end of the predecessor."""
        self._gave_leases_up = False
        """The successor knows that no worker here holds a lease."""
        self.failed_upgrades = 0
        self.outcome: int | Failure | None = None
        """How the last requested upgrade ended: the successor's pid, or why it failed; None while it is not known."""
        if predecessor is not None:
            self._inheritance = Inheritance.PENDING
            system.close_in_child(predecessor)
            if control is not None:
                control.listening = False

    def close(self) -> None:
        """Close both connections; the processes go on."""
        self._successor.close()
        if self._predecessor is not None:
            self._predecessor.close()

    # --- what the supervisor reads ------------------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """Whether the predecessor serves, and this supervisor is about to."""
        return self._inheritance is Inheritance.PENDING

    @property
    def successor_pid(self) -> int:
        return self._upgrade.pid

    @property
    def predecessor_pid(self) -> int | None:
        """The predecessor's pid while it runs."""
        return None if self._predecessor is None or self._predecessor.gone else self._predecessor.pid

    def shares_sockets(self) -> bool:
        """Return whether another supervisor accepts from these sockets, or may: the predecessor, or a successor that
        starts. One that leads owns them, and is not affected by what is done here."""
        theirs = self._predecessor is not None and self._predecessor.shares_sockets
        return theirs or self._upgrade.step is Step.STARTING

    def may_lease(self) -> bool:
        """Return whether the workers here may get leases: not while those of another supervisor may hold one."""
        before = self._predecessor
        theirs = before is not None and not before.gone and not before.leases_given_up
        return not theirs and not self._has_handed_over()

    def give_leases_up(self, are_held: bool) -> None:
        """Tell a successor that serves, once, that no worker here holds a lease: connections may keep them for days."""
        if self._has_handed_over() and not are_held and not self._gave_leases_up:
            self._gave_leases_up = self._successor.send(LeasesGivenUpMessage())

    def _may_launch(self) -> bool:
        return self._inheritance is Inheritance.SETTLED and self.predecessor_pid is None

    def pass_on_reopen(self) -> None:
        """Have a predecessor that drains open its log files again, because it writes to the same ones."""
        if self._predecessor is not None:
            self._predecessor.send(ReopenLogsMessage())

    def take_reopen(self) -> bool:
        """Return True once after the successor was told to open its log files again."""
        wanted, self._successor.wants_logs_reopened = self._successor.wants_logs_reopened, False
        return wanted

    def _has_handed_over(self) -> bool:
        return isinstance(self.outcome, int)

    def must_wait(self) -> bool:
        return self._upgrade.must_wait()

    def upgrading(self, accepting: bool) -> bool:
        """Return whether a successor starts, or serves while workers here are `accepting` beside it, or one waits."""
        step = self._upgrade.step
        return self._requested is not None or step is Step.STARTING or (step is Step.LEADING and accepting)

    def progress(self) -> Progress:
        """Return how far an upgrade is that was asked for here."""
        if self._requested is not None:
            return Progress(0, 2, f"the previous supervisor ({self.predecessor_pid}) drains, and has to end first")
        if self._upgrade.step is Step.STARTING:
            return Progress(0, 2, f"the new supervisor (pid {self._upgrade.pid}) starts its workers")
        return Progress(1, 2, f"supervisor {self._upgrade.pid} serves, and the workers here stop accepting")

    def reload_refusal(self) -> Failure | None:
        """Return why no reload can begin now, as far as the supervisors are concerned."""
        idle = self._upgrade.step is Step.IDLE and self._requested is None
        return None if idle else Failure("an upgrade is under way")

    def upgrade_refusal(self) -> Failure | None:
        """Return why no upgrade can begin now, as far as the supervisors are concerned."""
        refusal = self._upgrade.refusal()
        if refusal is None and os.getpid() == 1:
            refusal = Failure("process 1 cannot be replaced; reload, or start a new container")
        if refusal is None and self._requested is not None:
            refusal = Failure("an upgrade is under way")
        if refusal is None and self._inheritance is Inheritance.PENDING:
            refusal = Failure("this supervisor does not serve yet")
        return refusal

    # --- polling ------------------------------------------------------------------------------------------------------

    def interests(self, now: float) -> dict[int, int]:
        before = {} if self._predecessor is None else self._predecessor.interests()
        return {**before, **self._successor.interests()}

    def next_due(self, now: float) -> float | None:
        before = None if self._predecessor is None else self._predecessor.next_due(now)
        waits = now if self._requested is not None and self._may_launch() else None
        times = [before, waits, self._upgrade.next_due(), self._successor.next_due(now)]
        return min((due for due in times if due is not None), default=None)

    def collect(self, now: float) -> list[Fact]:
        """Receive what both have sent. Return what the roster has to know."""
        if self._predecessor is not None and not self._predecessor.gone:
            self._predecessor.check()
        news: list[UpgradeFact] = [*self._successor.collect(), TimePassed()]
        if self._requested is not None and self._may_launch():
            news.append(self._requested)
            self._requested = None
        return [fact for each in news for fact in self._apply(each, now)]

    # --- as a predecessor ---------------------------------------------------------------------------------------------

    def begin(self, by: str, timing: Timing, now: float) -> list[Fact]:
        """Start a successor. Return what the roster has to know. Raises RuntimeError unless an upgrade may begin.

        There are two supervisors at most: a predecessor that still drains is told to end its connections within its
        drain timeout for stops, and the successor is started after its end.
        """
        self.outcome, self._gave_leases_up = None, False
        request = UpgradeRequested(by, timing)
        if self._may_launch():
            return self._apply(request, now)
        assert self._predecessor is not None  # for mypy
        self._requested = request
        self._predecessor.send(StoppingMessage(at_once=False))
        self._emit(UpgradeWaits(by, self._predecessor.pid, timing.drain))
        return []

    def stop(self, request: StopRequested, now: float) -> list[Fact]:
        self._requested = None
        if self._predecessor is not None:
            self._predecessor.send(StoppingMessage(request.at_once))
        return self._apply(request, now)

    def _apply(self, fact: UpgradeFact, now: float) -> list[Fact]:
        return [each for command in self._upgrade.apply(fact, now) for each in self._do(command, now)]

    def _do(self, command: UpgradeCommand, now: float) -> list[Fact]:
        match command:
            case Launch():
                return [fact for news in self._successor.launch() for fact in self._apply(news, now)]
            case SignalSuccessor():
                self._successor.signal(command.at_once)
            case HandOver():
                self.outcome = command.pid
                self._set_ownership(FileOwnership.RELEASED)
                return [HandedOver()]
            case Abandon():
                # However far the successor came: it may have written the pidfile.
                self.failed_upgrades += 1
                self.outcome = Failure(str(UpgradeFailed(command.reason)))
                self._set_ownership(FileOwnership.OWNER)
            case RollBack():
                self.failed_upgrades += 1
                self.outcome = Failure(str(RolledBack(command.pid, command.cause)))
                self._set_ownership(FileOwnership.OWNER)
                return [SuccessorRolledBack()]
            case Settle():
                self._resources.end_listening()
                self._successor.send(SettledMessage())
            case StopToo():
                return [StopRequested("its successor", command.at_once)]
            case EmitEvent():
                self._emit(command.event)
        return []

    # --- as a successor -----------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Take the files over and tell the predecessor, because every worker here accepts.

        The predecessor gives the files up when it reads READY, so they are owned here before.
        """
        if self._predecessor is None:
            return
        self._set_ownership(FileOwnership.OWNER)
        self._predecessor.send(ReadyMessage())
        self._emit(TookOver(self._predecessor.pid))
        self._inheritance = Inheritance.TAKEN

    def take_settled(self) -> bool:
        """Return True once after the takeover, when the predecessor does not need its sockets any more.

        Until then it may serve again with them. A call that returns True changes the state to SETTLED.
        """
        if self._inheritance is not Inheritance.TAKEN or self.shares_sockets():
            return False
        self._inheritance = Inheritance.SETTLED
        return True

    def fail(self, reason: str) -> None:
        """Leave the files to the predecessor if it still runs, because this supervisor fails: it goes on serving."""
        if self._predecessor is not None and not self._predecessor.gone:
            self._predecessor.send(UnableMessage(reason))
            self._resources.set_ownership(FileOwnership.PROVISIONAL)

    def _set_ownership(self, ownership: FileOwnership) -> None:
        """Two supervisors may hold the control socket; the owner of the files answers there."""
        self._resources.set_ownership(ownership)
        self.owns_files = ownership is FileOwnership.OWNER
        if self._control is not None:
            self._control.listening = self.owns_files
