"""The decisions of an upgrade: whatever the successor does, and whatever is requested, one of the two serves."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from prefork.core.facts import EmitEvent, Failure, StopRequested, TimePassed
from prefork.core.states import Timing
from prefork.core.upgrade import (
    Abandon,
    HandOver,
    Launch,
    RollBack,
    Settle,
    SignalSuccessor,
    Step,
    StopToo,
    SuccessorDied,
    SuccessorReady,
    SuccessorStarted,
    SuccessorStopping,
    SuccessorUnable,
    Upgrade,
    UpgradeCommand,
    UpgradeFact,
    UpgradeRequested,
)


class Machine:
    """An upgrade, and what its commands have led to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.upgrade = Upgrade()
        self.running = False
        self.serving = True
        """Whether the workers of this supervisor serve."""
        self.signals: list[bool] = []
        self.stopped = False
        self.settled = False
        """Whether this supervisor has given its sockets up."""
        self.notes: list[str] = []

    def tell(self, fact: UpgradeFact) -> None:
        for command in self.upgrade.apply(fact, self.now):
            self.obey(command)

    def obey(self, command: UpgradeCommand) -> None:
        match command:
            case Launch():
                assert not self.running, "one at a time"
                self.running = True
                self.signals = []
                self.tell(SuccessorStarted(7))
            case SignalSuccessor():
                self.signals.append(command.at_once)
            case HandOver():
                assert self.serving
                self.serving = False
            case Abandon():
                assert self.serving
                assert not self.running
            case RollBack():
                assert not self.serving
                assert not self.settled, "it has no sockets"
                assert not self.running, "two would serve"
                self.serving = True
            case Settle():
                assert self.running
                assert not self.serving
                self.settled = True
            case StopToo():
                self.stopped = True
            case EmitEvent():
                self.notes.append(str(command.event))

    def ask(self) -> None:
        self.tell(UpgradeRequested("SIGUSR2", Timing()))

    def die(self, cause: str = "exit status 1") -> None:
        self.running = False
        self.tell(SuccessorDied(cause))


def test_a_successor_serves_only_once_it_is_ready() -> None:
    machine = Machine()
    machine.ask()
    assert machine.serving
    machine.tell(SuccessorReady())
    assert not machine.serving
    assert machine.notes[-1] == "upgraded: supervisor 7 is serving; draining this one"


def test_a_successor_that_cannot_start_changes_nothing_and_says_why() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorUnable("service x:y: SyntaxError"))
    machine.die("exit status 3")
    assert machine.serving
    assert machine.notes[-1] == "upgrade failed, this server stays: service x:y: SyntaxError"
    machine.ask()
    machine.die("signal 11 (SIGSEGV)")
    assert machine.notes[-1].endswith("the new supervisor died while starting: signal 11 (SIGSEGV)")
    machine.ask()
    machine.tell(SuccessorReady())
    assert not machine.serving, "the third try works"


def test_a_successor_stopped_during_its_start_says_so() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorStopping())
    machine.die("exit status 0")
    assert machine.notes[-1].endswith("this server stays: the new supervisor was asked to stop")
    assert not machine.stopped


def test_an_immediate_stop_reaches_both_supervisors() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorReady())
    assert machine.upgrade.apply(SuccessorStopping(at_once=True), machine.now) == [StopToo(at_once=True)]


def test_a_successor_that_hangs_is_killed() -> None:
    machine = Machine()
    machine.ask()
    assert machine.upgrade.next_due() == 175.0
    machine.now = 175.0
    machine.tell(TimePassed())
    assert machine.signals == [True]
    machine.tell(SuccessorReady())
    assert machine.serving, "too late: it is as good as dead"
    machine.die("signal 9 (SIGKILL)")
    assert machine.notes[-1].endswith("the new supervisor did not serve within 75 s (--boot-timeout plus 15 s)")


def test_asked_twice() -> None:
    machine = Machine()
    assert machine.upgrade.refusal() is None
    machine.ask()
    assert machine.upgrade.refusal() == Failure("an upgrade is under way")
    with pytest.raises(RuntimeError, match="cannot go from STARTING to STARTING"):
        machine.ask()
    machine.tell(SuccessorReady())
    assert machine.upgrade.refusal() == Failure("this supervisor has handed over to 7")
    machine.tell(StopRequested("SIGTERM"))
    assert machine.upgrade.refusal() == Failure("the server is stopping")


def test_a_successor_that_dies_during_the_drain_is_replaced_by_our_workers() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorReady())
    machine.die("signal 9 (SIGKILL)")
    assert machine.serving
    machine.ask()
    assert machine.running


def test_a_successor_that_is_stopped_during_the_drain_is_not_replaced() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorReady())
    machine.tell(SuccessorStopping())
    assert machine.stopped
    machine.die("exit status 0")
    assert not machine.serving


def test_a_successor_that_dies_long_after_the_hand_over_is_not_replaced() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorReady())
    assert machine.upgrade.next_due() == 130.0
    machine.now = 130.0
    machine.tell(TimePassed())
    assert machine.settled
    assert machine.upgrade.next_due() is None
    assert machine.upgrade.refusal() == Failure("this supervisor has handed over to 7")
    machine.die()
    assert not machine.serving


def test_a_stop_ends_a_starting_successor_and_waits_for_it() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(StopRequested("SIGTERM"))
    assert machine.signals == [False]
    assert machine.upgrade.must_wait()
    machine.tell(SuccessorReady())
    assert machine.upgrade.must_wait()
    machine.tell(StopRequested("SIGQUIT", at_once=True))
    assert machine.signals == [False, True]
    machine.die()
    assert not machine.upgrade.must_wait()


def test_a_stop_does_not_end_a_serving_successor() -> None:
    machine = Machine()
    machine.ask()
    machine.tell(SuccessorReady())
    machine.tell(StopRequested("SIGTERM"))
    assert machine.signals == []
    assert not machine.upgrade.must_wait()
    machine.die()
    assert machine.upgrade.step is Step.LEFT
    assert not machine.serving


happenings = st.sampled_from(["ask", "ready", "unable", "stopping", "die", "stop", "kill", "wait"])


@hypothesis.given(st.lists(happenings, max_size=30))
def test_every_random_history_of_an_upgrade_keeps_its_invariants(history: list[str]) -> None:
    machine = Machine()
    stopping = False
    for each in history:
        if each == "ask" and machine.upgrade.refusal() is None:
            machine.ask()
        elif each == "ready" and machine.running:
            machine.tell(SuccessorReady())
        elif each == "unable" and machine.running:
            machine.tell(SuccessorUnable("no"))
        elif each == "stopping" and machine.running:
            machine.tell(SuccessorStopping())
        elif each == "die" and machine.running:
            machine.die()
        elif each in ("stop", "kill"):
            stopping = True
            machine.tell(StopRequested("SIGTERM", at_once=each == "kill"))
        elif each == "wait":
            machine.now += 50
            machine.tell(TimePassed())
        stopping = stopping or machine.stopped
        if not stopping and not machine.settled:
            assert machine.serving or machine.running, "neither serves"
    machine.tell(StopRequested("SIGTERM"))
    machine.now += 1000
    machine.tell(TimePassed())
    if machine.upgrade.must_wait():
        assert machine.signals[-1], "it is killed in the end"
        machine.die()
    assert not machine.upgrade.must_wait()
