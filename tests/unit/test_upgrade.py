"""The decisions of an upgrade: whatever the successor does, and whoever asks for what, one of the two serves."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from prefork.core.upgrade import (
    Command,
    EmitEvent,
    Fact,
    HandOver,
    Launch,
    Signal,
    Step,
    Stopping,
    StopToo,
    SuccessorDied,
    SuccessorReady,
    SuccessorStarted,
    SuccessorStopping,
    SuccessorUnable,
    TakeBack,
    TimePassed,
    Upgrade,
    UpgradeAsked,
)


class Machine:
    """An upgrade, and what its commands have led to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.upgrade = Upgrade()
        self.running = False
        self.serving = True
        """Whether ours serve."""
        self.signals: list[bool] = []
        self.stopped = False
        self.notes: list[str] = []

    def tell(self, fact: Fact) -> None:
        for command in self.upgrade.apply(fact, self.now):
            self.obey(command)

    def obey(self, command: Command) -> None:
        match command:
            case Launch():
                assert not self.running, "one at a time"
                self.running = True
                self.signals = []
                self.tell(SuccessorStarted(7))
            case Signal():
                self.signals.append(command.at_once)
            case HandOver():
                assert self.serving
                self.serving = False
            case TakeBack():
                assert not self.serving
                assert not self.running, "two would serve"
                self.serving = True
            case StopToo():
                self.stopped = True
            case EmitEvent():
                self.notes.append(str(command.event))

    def die(self, cause: str = "exit status 1") -> None:
        self.running = False
        self.tell(SuccessorDied(cause))


def test_it_takes_over_when_it_is_ready_and_not_before() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    assert machine.serving
    machine.tell(SuccessorReady())
    assert not machine.serving
    assert machine.notes[-1] == "upgraded: supervisor 7 is serving; draining this one"


def test_one_that_cannot_start_changes_nothing_and_says_why() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorUnable("service x:y: SyntaxError"))
    machine.die("exit status 3")
    assert machine.serving
    assert machine.notes[-1] == "upgrade failed, this server stays: service x:y: SyntaxError"
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.die("signal 11 (SIGSEGV)")
    assert machine.notes[-1].endswith("it died while it started: signal 11 (SIGSEGV)")
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorReady())
    assert not machine.serving, "the third try works"


def test_one_that_was_stopped_while_it_started_says_so() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorStopping())
    machine.die("exit status 0")
    assert machine.notes[-1].endswith("this server stays: it was asked to stop")
    assert not machine.stopped


def test_at_once_means_both() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorReady())
    assert machine.upgrade.apply(SuccessorStopping(at_once=True), machine.now) == [StopToo(at_once=True)]


def test_one_that_hangs_is_killed() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    assert machine.upgrade.next_due() == 175.0
    machine.now = 175.0
    machine.tell(TimePassed())
    assert machine.signals == [True]
    machine.tell(SuccessorReady())
    assert machine.serving, "too late: it is as good as dead"
    machine.die("signal 9 (SIGKILL)")
    assert machine.notes[-1].endswith("it does not serve after 75 s")


def test_asked_twice() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2", "the server is booting"))
    assert machine.notes == ["not upgrading (SIGUSR2): the server is booting"]
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(UpgradeAsked("SIGUSR2"))
    assert machine.notes[-1] == "not upgrading (SIGUSR2): an upgrade is under way"
    machine.tell(SuccessorReady())
    machine.tell(UpgradeAsked("SIGUSR2"))
    assert machine.notes[-1] == "not upgrading (SIGUSR2): this supervisor has handed over to 7"


def test_one_that_dies_while_ours_drain_is_replaced_by_ours() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorReady())
    machine.die("signal 9 (SIGKILL)")
    assert machine.serving
    machine.tell(UpgradeAsked("SIGUSR2"))
    assert machine.running


def test_one_that_is_stopped_while_ours_drain_is_not() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorReady())
    machine.tell(SuccessorStopping())
    assert machine.stopped
    machine.die("exit status 0")
    assert not machine.serving


def test_a_stop_ends_one_that_has_not_come_to_serve_and_waits_for_it() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(Stopping(at_once=False))
    assert machine.signals == [False]
    assert machine.upgrade.waits()
    machine.tell(SuccessorReady())
    assert machine.upgrade.waits()
    machine.tell(Stopping(at_once=True))
    assert machine.signals == [False, True]
    machine.die()
    assert not machine.upgrade.waits()


def test_a_stop_leaves_one_that_serves_alone() -> None:
    machine = Machine()
    machine.tell(UpgradeAsked("SIGUSR2"))
    machine.tell(SuccessorReady())
    machine.tell(Stopping(at_once=False))
    assert machine.signals == []
    assert not machine.upgrade.waits()
    machine.die()
    assert machine.upgrade.step is Step.LEFT
    assert not machine.serving


happenings = st.sampled_from(["ask", "ready", "unable", "stopping", "die", "stop", "kill", "wait"])


@hypothesis.given(st.lists(happenings, max_size=30))
def test_any_history(history: list[str]) -> None:
    machine = Machine()
    stopping = False
    for each in history:
        if each == "ask":
            machine.tell(UpgradeAsked("SIGUSR2"))
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
            machine.tell(Stopping(at_once=each == "kill"))
        elif each == "wait":
            machine.now += 50
            machine.tell(TimePassed())
        stopping = stopping or machine.stopped
        if not stopping:
            assert machine.serving or machine.running, "nobody serves"
    machine.tell(Stopping(at_once=False))
    machine.now += 1000
    machine.tell(TimePassed())
    if machine.upgrade.waits():
        assert machine.signals[-1], "it is killed in the end"
        machine.die()
    assert not machine.upgrade.waits()
