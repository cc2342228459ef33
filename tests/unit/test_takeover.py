"""What a supervisor does in an upgrade: which files it owns, where it answers, and what its roster learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prefork.core.facts import Failure, HandedOver, StopRequested, SuccessorRolledBack
from prefork.core.messages import (
    LeasesGivenUpMessage,
    ReadyMessage,
    ReopenLogsMessage,
    SettledMessage,
    StoppingMessage,
    UnableMessage,
)
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
        self.launched = 0
        self.wants_logs_reopened = False
        self.sent: list[object] = []

    def launch(self) -> list[UpgradeFact]:
        self.launched += 1
        return [SuccessorStarted(7)]

    def next_due(self, now: float) -> float | None:
        return None

    def send(self, message: object) -> bool:
        self.sent.append(message)
        return True

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
        self.leases_given_up = self.settled = False

    @property
    def shares_sockets(self) -> bool:
        return not self.gone and not self.settled

    def next_due(self, now: float) -> float | None:
        return None

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
        self.ended_listening = 0
        resources = SimpleNamespace(set_ownership=self.owned.append, end_listening=self._end_listening)
        system = SimpleNamespace(close_in_child=lambda *_: None)
        emit = [].append
        self.takeover = takeover.Takeover(system, resources, emit, lambda: (2, False), self.control, predecessor)

    def _end_listening(self) -> None:
        self.ended_listening += 1

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
    assert supervisor.receive(SuccessorStopping(at_once=True)) == [StopRequested("its successor", at_once=True)]


def test_the_files_are_owned_before_the_predecessor_learns_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    assert not supervisor.control.listening
    assert supervisor.takeover.upgrade_refusal() == Failure("this supervisor does not serve yet")
    monkeypatch.setattr(predecessor, "send", lambda message: predecessor.sent.append((message, *supervisor.owned)))
    supervisor.takeover.take_over()
    assert predecessor.sent == [(ReadyMessage(), FileOwnership.OWNER)]
    assert supervisor.control.listening
    assert not supervisor.takeover.take_settled(), "the predecessor may serve again"
    predecessor.gone = True
    assert supervisor.takeover.take_settled()
    assert not supervisor.takeover.take_settled(), "once"


def test_an_upgrade_begins_when_the_predecessor_that_drains_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    takeover = supervisor.takeover
    takeover.take_over()
    assert takeover.upgrade_refusal() is None
    assert takeover.begin("SIGUSR2", Timing(), 100.0) == []
    assert predecessor.sent[-1] == StoppingMessage(), "its connections have the drain timeout of a stop"
    assert takeover.upgrading(accepting=True)
    assert takeover.upgrade_refusal() == takeover.reload_refusal() == Failure("an upgrade is under way")
    assert takeover.next_due(100.0) is None
    predecessor.settled = True
    assert takeover.take_settled(), "it has given up its sockets"
    takeover.collect(100.0)
    assert supervisor.successor.launched == 0, "there are two supervisors at most"
    predecessor.gone = True
    assert takeover.next_due(100.0) == 100.0
    takeover.collect(100.0)
    assert supervisor.successor.launched == 1


def test_the_sockets_are_the_successors_after_a_while(supervisor: Supervisor) -> None:
    supervisor.receive(SuccessorReady())
    list(supervisor.takeover.collect(129.0))
    assert (supervisor.ended_listening, supervisor.successor.sent) == (0, [])
    list(supervisor.takeover.collect(130.0))
    assert (supervisor.ended_listening, supervisor.successor.sent) == (1, [SettledMessage()])


def test_log_files_are_reopened_by_both_supervisors(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    Supervisor(monkeypatch, predecessor).takeover.pass_on_reopen()
    assert predecessor.sent == [ReopenLogsMessage()]
    supervisor.successor.wants_logs_reopened = True
    assert supervisor.takeover.take_reopen()
    assert not supervisor.takeover.take_reopen(), "once"


def test_leases_pass_to_the_successor_when_no_worker_here_holds_one(supervisor: Supervisor) -> None:
    assert supervisor.takeover.may_lease()
    supervisor.receive(SuccessorReady())
    assert not supervisor.takeover.may_lease(), "it would have to be waited for"
    for held in (True, False, False):
        supervisor.takeover.give_leases_up(held)
    assert supervisor.successor.sent == [LeasesGivenUpMessage()]
    supervisor.receive(SuccessorDied("signal 9 (SIGKILL)"))
    assert supervisor.takeover.may_lease(), "it serves again"


def test_a_successor_grants_leases_when_its_predecessor_has_given_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    takeover = Supervisor(monkeypatch, predecessor).takeover
    assert not takeover.may_lease()
    predecessor.leases_given_up = True
    assert takeover.may_lease()


def test_a_stop_forgets_an_upgrade_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    supervisor.takeover.take_over()
    supervisor.takeover.begin("SIGUSR2", Timing(), 100.0)
    supervisor.takeover.stop(StopRequested("SIGTERM"), 100.0)
    assert not supervisor.takeover.upgrading(accepting=True)


def test_a_supervisor_that_fails_leaves_the_files_to_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    predecessor = Predecessor()
    supervisor = Supervisor(monkeypatch, predecessor)
    supervisor.takeover.stop(StopRequested("SIGTERM"), 100.0)
    supervisor.takeover.fail("no worker is left")
    assert predecessor.sent == [StoppingMessage(), UnableMessage("no worker is left")]
    assert supervisor.owned == [FileOwnership.PROVISIONAL]
