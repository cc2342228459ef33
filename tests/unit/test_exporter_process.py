"""The supervisor's side of the process of --metrics: what a hostile one can do, and when another one is started."""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from prefork.core.exporter_settings import LOADED, SERVE, SILENCE_TIMEOUT
from prefork.events import Event, MetricsUnserved
from prefork.parent.exporter import (
    LAST_ANSWERS_TIME,
    LOAD_TIMEOUT,
    REQUEST_INTERVAL,
    Exporter,
    ExporterSpec,
    environment,
)
from prefork.system.child import Child, ExitStatus
from prefork.system.listeners import BoundAddress
from prefork.system.processes import System


class Launch(System):
    """Executes nothing: a test keeps the other end of the connection, and says what the process would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.signals: list[int] = []
        self.link: socket.socket | None = None
        self.launches = 0
        self.status: ExitStatus | None = None

    def execute(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        failed: Callable[[OSError], object],
    ) -> Child:
        self.launches += 1
        self.status = None
        if self.link is not None:
            self.link.close()
        self.link = socket.socket(fileno=os.dup(json.loads(command[-1])["link"]))
        self.link.setblocking(False)
        return _Child(self)


class _Child(Child):
    def __init__(self, system: Launch) -> None:
        super().__init__(99, None)
        self._system = system

    def signal(self, sig: int) -> bool:
        self._system.signals.append(sig)
        return True

    def reap(self) -> ExitStatus | None:
        return self._system.status

    def wait(self) -> ExitStatus:
        return ExitStatus(0)


class World:
    """The supervisor's side, and the other end of its connection."""

    def __init__(self) -> None:
        self.system = Launch()
        self.events: list[Event] = []
        self.padding = ""
        spec = ExporterSpec(BoundAddress("metrics:", ()), None, None, "text")
        self.exporter = Exporter(spec, self.system, self.events.append, self._status)
        self.collect()

    def _status(self) -> dict[str, Any]:
        return {"state": "serving", "padding": self.padding}

    @property
    def link(self) -> socket.socket:
        assert self.system.link is not None
        return self.system.link

    def collect(self, after: float = REQUEST_INTERVAL, wanted: bool = True, soon: bool = False) -> None:
        self.system.now += after
        self.exporter.collect(self.system.now, wanted, soon)

    def answer(self) -> dict[str, Any]:
        self.collect()
        value: dict[str, Any] = json.loads(self.link.recv(65536))
        return value

    def waits_for(self) -> set[int]:
        return set(self.exporter.interests(self.system.now).values())


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.exporter.close()
    made.link.close()


def test_it_gets_the_status_and_nothing_else(world: World) -> None:
    world.link.send(b'{"command": "status"}\n')
    assert world.answer() == {"ok": True, "state": "serving", "padding": ""}
    for line in (b'{"command": "stop"}', b'{"command": "reload"}', b"\0" * 100, b"[" * 3000):
        world.link.send(line + b"\n")
        assert world.answer()["ok"] is False


def test_a_flood_is_read_once_in_an_interval_and_answered_once(world: World) -> None:
    world.link.send(b'{"command": "status"}\n' * 1000)
    world.collect()
    assert select.POLLIN not in world.waits_for()
    assert len(world.link.recv(65536).splitlines()) == 1
    due = world.exporter.next_due(world.system.now)
    assert due == pytest.approx(world.system.now + REQUEST_INTERVAL)


def test_one_that_does_not_read_is_not_waited_for(world: World) -> None:
    world.padding = "x" * 10_000_000
    world.link.send(b'{"command": "status"}\n')
    world.collect()
    assert world.waits_for() == {select.POLLOUT}
    received = b""
    while not received.endswith(b"\n"):
        received += world.link.recv(1_000_000)
        world.collect()
    assert json.loads(received)["padding"] == world.padding


def test_one_that_closes_its_end_is_killed_and_replaced(world: World) -> None:
    world.link.shutdown(socket.SHUT_RDWR)
    world.collect()
    assert world.system.signals == [9]
    world.system.status = ExitStatus(None, 9)
    world.collect()
    world.collect(1.0)
    assert world.system.launches == 2
    assert world.events == [MetricsUnserved("--metrics", "its process died: signal 9 (SIGKILL)", 0.5)]


def test_one_that_never_serves_is_reported_once_and_started_ever_more_seldom(world: World) -> None:
    started_at = []
    while world.system.now < 600:
        before = world.system.launches
        world.collect(0.5)
        if world.system.launches > before:
            started_at.append(world.system.now)
        world.system.status = ExitStatus(1)
    assert world.events == [MetricsUnserved("--metrics", "its process died: exit status 1", 0.5)]
    gaps = [round(later - earlier, 3) for earlier, later in itertools.pairwise(started_at)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == pytest.approx(30, abs=1)


def test_another_supervisor_serves_only_once_this_one_has_let_go(world: World) -> None:
    world.collect(wanted=False)
    assert world.link.recv(10) == b""
    world.system.status = ExitStatus(0)
    world.collect(wanted=False)
    assert world.exporter.pid == 0
    assert world.exporter.next_due(world.system.now) is None
    assert world.events == []
    world.collect(wanted=True)
    assert world.system.launches == 2


@pytest.fixture
def successor(world: World) -> World:
    """The side of a supervisor that is about to serve."""
    world.collect(wanted=False)
    world.system.status = ExitStatus(0)
    world.collect(wanted=False)
    world.collect(wanted=False, soon=True)
    assert world.system.launches == 2
    return world


def test_one_of_a_successor_loads_early_and_serves_when_its_supervisor_does(successor: World) -> None:
    world, exporter = successor, successor.exporter
    assert not exporter.is_prepared(world.system.now)
    assert exporter.next_due(world.system.now) <= world.system.now + LOAD_TIMEOUT
    assert world.waits_for() == {select.POLLIN}
    world.link.send(LOADED)
    # However long its predecessor takes: nothing is said to it, and it is not killed for its silence.
    for _ in range(5):
        world.collect(after=SILENCE_TIMEOUT, wanted=False, soon=True)
        assert exporter.is_prepared(world.system.now)
        assert world.waits_for() == set()
    with pytest.raises(BlockingIOError):
        world.link.recv(1)
    assert world.system.signals == []
    world.collect()
    assert world.link.recv(10) == SERVE
    world.link.send(b'{"command": "status"}\n')
    assert world.answer()["state"] == "serving"


def test_a_takeover_waits_for_one_that_loads_only_for_a_while(successor: World) -> None:
    world, exporter = successor, successor.exporter
    assert not exporter.is_prepared(world.system.now)
    world.collect(after=LOAD_TIMEOUT, wanted=False, soon=True)
    assert exporter.is_prepared(world.system.now)
    world.collect()
    assert world.link.recv(10) == SERVE
    world.link.send(LOADED + b'{"command": "status"}\n')
    assert world.answer()["state"] == "serving"


def test_a_takeover_does_not_wait_for_one_that_has_died(successor: World) -> None:
    successor.system.status = ExitStatus(1)
    successor.collect(wanted=False, soon=True)
    assert successor.exporter.is_prepared(successor.system.now)
    assert [type(event) for event in successor.events] == [MetricsUnserved]


def test_its_last_answers_are_waited_for_within_a_bound(world: World) -> None:
    assert not world.exporter.must_wait(world.system.now)
    world.collect(wanted=False)
    began = world.system.now
    assert world.exporter.must_wait(began)
    due = world.exporter.next_due(began)
    assert due is not None
    assert due <= began + LAST_ANSWERS_TIME
    assert not world.exporter.must_wait(began + LAST_ANSWERS_TIME)
    world.system.status = ExitStatus(0)
    world.collect(wanted=False)
    assert not world.exporter.must_wait(began)


def test_its_environment_has_none_of_the_services_secrets() -> None:
    found = environment({"PATH": "/bin", "DATABASE_PASSWORD": "hunter2", "LC_ALL": "C", "PYTHONPATH": "/srv"})
    assert found == {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/srv"}
