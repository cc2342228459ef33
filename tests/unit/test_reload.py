"""What a reload is made of: which spec belongs to which generation, and what follows when it serves."""

from __future__ import annotations

import dataclasses

from prefork.core.facts import Failure, GenerationFailed, GenerationServes, ReloadRequested, ScaleRequested
from prefork.core.states import Timing
from prefork.errors import ConfigError
from prefork.events import Event
from prefork.parent.generations import GenerationSpec
from prefork.parent.reload import Reloads


def spec(config: str, workers: int = 2) -> GenerationSpec[str]:
    return GenerationSpec(workers, Timing(), {}, (), config)


class Resources:
    """Gives `next` for a reload, and remembers what it is told."""

    def __init__(self) -> None:
        self.next: GenerationSpec[str] | Exception = spec("one")
        self.committed: list[str] = []
        self.in_use: list[str] = []

    def rebuild(self) -> GenerationSpec[str]:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def commit(self, spec: GenerationSpec[str]) -> None:
        self.committed.append(spec.config)

    def release_unused(self, specs: list[GenerationSpec[str]]) -> None:
        self.in_use = [each.config for each in specs]

    def repair_listeners(self, spec: GenerationSpec[str]) -> GenerationSpec[str]:
        return dataclasses.replace(spec, config=f"{spec.config}, repaired")


def reloads(resources: Resources, events: list[Event] | None = None) -> Reloads[str]:
    return Reloads(spec("zero"), resources, [].append if events is None else events.append, max_workers=64)


def test_a_reload_that_serves_is_committed_and_scales_to_a_new_number_only() -> None:
    resources = Resources()
    made = reloads(resources)
    assert made.request("SIGHUP", 1) == ReloadRequested("SIGHUP", Timing())
    assert made.outcome is None
    assert made.on_serves(GenerationServes(1, 0)) is None, "2 workers, as before"
    assert (made.outcome, resources.committed) == (1, ["one"])
    resources.next = spec("two", workers=5)
    made.request("SIGHUP", 2)
    assert made.on_serves(GenerationServes(2, 1)) == ScaleRequested("reload", 5)
    made.forget_unused({2})
    assert resources.in_use == ["two"]


def test_a_number_of_workers_that_was_set_during_a_reload_stays() -> None:
    resources = Resources()
    made = reloads(resources)
    resources.next = spec("two", workers=5)
    made.request("SIGHUP", 1)
    made.on_scaled()
    assert made.on_serves(GenerationServes(1, 0)) is None
    resources.next = spec("three", workers=6)
    made.request("SIGHUP", 2)
    assert made.on_serves(GenerationServes(2, 1)) == ScaleRequested("reload", 6)


def test_a_reload_tells_which_addresses_it_has_changed() -> None:
    resources, events = Resources(), list[Event]()
    made = reloads(resources, events)
    resources.next = dataclasses.replace(spec("one"), listeners=("one (tcp)", "two (tcp)"))
    made.request("SIGHUP", 1)
    made.on_serves(GenerationServes(1, 0))
    resources.next = dataclasses.replace(spec("two"), listeners=("two (tcp)", "three (tcp)"))
    made.request("SIGHUP", 2)
    made.on_serves(GenerationServes(2, 1))
    assert [str(event) for event in events] == [
        "listening on one (tcp) too; listening on two (tcp) too",
        "listening on three (tcp) too; not listening on one (tcp) any more",
    ]


def test_a_queued_reload_is_replaced_by_the_next_request() -> None:
    resources = Resources()
    made = reloads(resources)
    made.request("SIGHUP", 1)
    resources.next = spec("two")
    made.request("SIGHUP", 1)
    assert made.spec(1).config == "two"
    assert made.newest(begun=0).config == "zero", "it has not begun"


def test_a_repair_keeps_the_settings_of_a_queued_reload() -> None:
    made = reloads(Resources())
    made.request("SIGHUP", 1)
    assert made.repair(1, allowed=True) is not None
    assert made.spec(1).config == "one, repaired"
    assert made.repair(2, allowed=False) is None


def test_settings_that_cannot_be_used_change_nothing() -> None:
    resources = Resources()
    events: list[Event] = []
    made = reloads(resources, events)
    resources.next = ConfigError("--backlog x: must be a whole number")
    assert made.request("SIGHUP", 1) == Failure("--backlog x: must be a whole number")
    resources.next = spec("many", workers=65)
    refusal = made.request("SIGHUP", 1)
    assert isinstance(refusal, Failure)
    assert refusal.reason.startswith("workers = 65: at most 64 until a restart")
    resources.next = RuntimeError("a bug")
    assert made.request("SIGHUP", 1) == Failure("the settings could not be loaded: RuntimeError('a bug')")
    assert "RuntimeError('a bug') (this is a bug in prefork" in str(events[0])
    assert made.newest(begun=9).config == "zero"


def test_the_outcome_of_a_reload_that_failed_says_why() -> None:
    made = reloads(Resources())
    made.on_failed(GenerationFailed(0, "SyntaxError"))
    assert isinstance(made.outcome, Failure)
    assert "SyntaxError" in made.outcome.reason
