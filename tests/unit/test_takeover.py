"""What a supervisor does in an upgrade: which files it owns, where it answers, and what its roster learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefork.core.facts import Failure, HandedOver, StopRequested, SuccessorRolledBack
from prefork.core.messages import ReadyMessage, StoppingMessage, UnableMessage
from prefork.core.states import Timing
from prefork.core.upgrade import (
    SuccessorDied,
    SuccessorReady,
    SuccessorStarted,
    SuccessorStopping,
    SuccessorUnable,
    UpgradeFact,
)
from prefork.parent import takeover
from prefork.system.file_ownership import FileOwnership


class Successor:
    """Starts at once as process 7, and has news when a test says so."""

    def __init__(self) -> None:
        self.news: list[UpgradeFact] = []
        self.signals: list[bool] = []

    def launch(self) -> list[UpgradeFact]:
        return [SuccessorStarted(7)]

    def collect(self) -> list[UpgradeFact]:
        news, self.news = self.news, []
        return news

    def signal(self, at_once: bool) -> None:
        self.signals.append(at_once)


class Predecessor:
    """Remembers what it was sent."""

    pid = 6

    def __init__(self) -> None:
        self.sent: list[object] = []
        self.gone = False

    def send(self, message: object) -> None:
        self.sent.append(message)

    def check(self) -> None: ...


class Supervisor:
    """A takeover, with all that it acts on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, predecessor: Predecessor | None = None) -> None:
        self.successor = Successor()
        monkeypatch.setattr(takeover, "Successor", lambda *_: self.successor)
        self.owned: list[FileOwnership] = []
        self.control = SimpleNamespace(listening=True)
        resources = SimpleNamespace(set_ownership=self.owned.append)
        system = SimpleNamespace(close_in_child=lambda *_: None)
        emit = [].append
        self.takeover = takeover.Takeover(system, resources, emit, lambda: (2, False), self.control, predecessor)

    def receive(self, *news: UpgradeFact) -> list[object]:
        self.successor.news = list(news)
        return list(self.takeover.collect(100.0))


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor(monkeypatch)
    assert made.takeover.upgrade_refusal() is None
    assert made.takeover.begin("SIGUSR2", Timing(), 100.0) == []
    assert made.takeover.outcome is None
    assert made.takeover.shares_sockets()
    return made


def test_a_successor_that_serves_gets_the_files_and_answers_commands(supervisor: Supervisor) -> None:
    assert supervisor.receive(SuccessorReady()) == [HandedOver()]
    assert supervisor.owned == [FileOwnership.RELEASED]
    assert not supervisor.control.listening
    assert supervisor.takeover.outcome == 7
    assert not supervisor.takeover.shares_sockets()


def test_a_successor_that_fails_while_starting_leaves_everything_owned(supervisor: Supervisor) -> None:
    assert supervisor.receive(SuccessorUnable("no database"), SuccessorDied("exit status 3")) == []
    assert supervisor.owned == [FileOwnership.OWNER]
    assert supervisor.control.listening
    assert isinstance(supervisor.takeover.outcome, Failure)
    assert supervisor.takeover.outcome.reason.endswith("no database")


def test_a_roll_back_takes_everything_back_and_is_a_failed_upgrade(supervisor: Supervisor) -> None:
    supervisor.receive(SuccessorReady())
    assert supervisor.receive(SuccessorDied("signal 9 (SIGKILL)")) == [SuccessorRolledBack()]
    assert supervisor.owned == [FileOwnership.RELEASED, FileOwnership.OWNER]
    assert supervisor.control.listening
    assert isinstance(supervisor.takeover.outcome, Failure)
    assert "signal 9 (SIGKILL)" in supervisor.takeover.outcome.reason


def test_a_stop_ends_a_successor_that_starts_and_waits_for_it(supervisor: Supervisor) -> None:
    assert supervisor.takeover.stop(StopRequested("SIGTERM"), 100.0) == []
    assert supervisor.successor.signals == [False]
    assert supervisor.takeover.must_wait()


def test_a_successor_that_is_stopped_stops_this_supervisor(supervisor: Supervisor) -> None:
    supervisor.receive(SuccessorReady())
    assert supervisor.receive(SuccessorStopping(at_once=True)) == [StopRequested("successor stopped", at_once=True)]


def test_the_files_are_owned_before_the_predecessor_learns_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    assert not supervisor.control.listening
    assert supervisor.takeover.upgrade_refusal() == Failure("the previous supervisor (6) is still draining")
    monkeypatch.setattr(predecessor, "send", lambda message: predecessor.sent.append((message, *supervisor.owned)))
    supervisor.takeover.take_over()
    assert predecessor.sent == [(ReadyMessage(), FileOwnership.OWNER)]
    assert supervisor.control.listening
    assert not supervisor.takeover.take_settled(), "the predecessor may serve again"
    predecessor.gone = True
    assert supervisor.takeover.take_settled()
    assert not supervisor.takeover.take_settled(), "once"


def test_a_supervisor_that_fails_leaves_the_files_to_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    supervisor.takeover.stop(StopRequested("SIGTERM"), 100.0)
    supervisor.takeover.fail("no worker is left")
    assert predecessor.sent == [StoppingMessage(), UnableMessage("no worker is left")]
    assert supervisor.owned == [FileOwnership.PROVISIONAL]
