"""Events: each class formats its fields into one line, and is made and compared like a dataclass."""

from __future__ import annotations

import pytest

from prefork import events
from prefork.events import Event

#: A value for each type of a field.
VALUES = {"str": "text", "int": 1, "float": 1.5, "float | None": None, "bool": False, "tuple[str, ...]": ("one", "two")}
CATALOGUE = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, Event)]


@pytest.mark.parametrize("kind", [each for each in CATALOGUE if each is not Event])
def test_an_event_is_one_line_with_its_fields(kind: type[Event]) -> None:
    event = kind(**{name: VALUES[annotation] for name, annotation in kind.__annotations__.items()})
    assert str(event).isprintable()
    assert "{" not in str(event)
    assert list(event.fields()) == list(kind.__annotations__)


def test_events_are_compared_by_class_and_fields() -> None:
    assert events.Ready(2) == events.Ready(workers=2) != events.Ready(3)
    assert events.Ready(2) != events.DrainTimedOut(2)
    assert len({events.Ready(2), events.Ready(2), events.Ready(3)}) == 2
    assert repr(events.Ready(2)) == "Ready(workers=2)"
    assert events.HandlerFailed("p", "e").fields() == {"peer": "p", "error": "e", "traceback": ""}


@pytest.mark.parametrize(("values", "named"), [((), {}), ((1, 2), {}), ((1,), {"more": 2})])
def test_missing_and_unknown_fields_are_a_type_error(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Ready takes workers"):
        events.Ready(*values, **named)


def test_numbers_are_followed_by_the_right_form_of_their_noun() -> None:
    assert str(events.Ready(1)) == "ready: 1 worker"
    assert str(events.Scaled("SIGTTIN", 3)) == "scaled (SIGTTIN): 3 workers"
    assert str(events.Drained(1, 0)) == "drained: 1 connection closed, none aborted"
    assert str(events.Drained(12, 2)) == "drained: 12 connections closed, 2 aborted (--drain-timeout)"
