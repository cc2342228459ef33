"""What an agent check of HAProxy is told: the weight by load, in steps, and never a word that a dead agent could not
take back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.agent_check import FALL_STEP, RISE_STEP, Weight, answer, measure
from prefork.exporter.health import unready_reason


def worker(slot: int, state: str = "ready", paused: str | None = None, lag: float = 0.0) -> dict[str, Any]:
    return {"slot": slot, "state": state, "paused": paused, "lag": {"p50": lag, "p99": lag, "max": lag}}


def status(*workers: dict[str, Any], target: int = 2, open: int = 0, limit: int | None = None) -> dict[str, Any]:
    return {"workers": workers, "workers_target": target, "totals": {"open": open}, "limit": limit}


IDLE = (worker(0), worker(1))


@pytest.mark.parametrize(
    ("load", "weight"),
    [
        (status(*IDLE), 100),
        (status(*IDLE, open=800, limit=1000), 100),
        (status(*IDLE, open=900, limit=1000), 50),
        (status(*IDLE, open=1000, limit=1000), 0),
        (status(*IDLE, open=3000, limit=1000), 0),
        (status(*IDLE, open=3000), 100),
        (status(worker(0)), 50),
        (status(worker(0), worker(1, "starting")), 50),
        (status(worker(0), worker(0, "draining"), worker(1)), 100),
        (status(worker(0), worker(1, paused="max_connections")), 50),
        (status(worker(0, lag=0.05), worker(1)), 100),
        (status(worker(0, lag=0.275), worker(1, lag=0.275)), 55),
        (status(worker(0, lag=9.0), worker(1, lag=9.0)), 10),
    ],
)
def test_the_weight_is_the_capacity_that_is_left(load: dict[str, Any], weight: float) -> None:
    assert measure(load) == pytest.approx(weight)


def test_a_full_server_keeps_a_weight_because_none_would_be_a_drain() -> None:
    assert answer(status(*IDLE, open=1000, limit=1000), "", Weight(), 0.0) == "up ready 1%"


def test_a_server_that_wants_no_connections_says_so_and_takes_it_back() -> None:
    weight = Weight()
    assert answer(status(*IDLE), "the server is stopping", weight, 0.0) == "drain"
    assert answer(status(*IDLE), "", weight, 1.0) == "up ready 100%"


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=50))
def test_a_weight_that_is_told_changes_in_steps_only(measured: list[tuple[float, float]]) -> None:
    weight, now = Weight(), 0.0
    for value, seconds in measured:
        now += seconds
        before, told = weight.told, weight.next(value, now)
        assert 1 <= told <= 100
        change = told - before
        assert change == 0 or told in (1, 100) or change <= -FALL_STEP or change >= RISE_STEP


def test_a_load_that_wavers_changes_nothing() -> None:
    weight = Weight()
    weight.next(60, 0.0)
    assert {weight.next(60 + wave, 10.0 + now) for now, wave in enumerate((0, 5, -5, 9, -9, 0))} == {60}


def test_a_worker_that_pauses_just_when_it_is_asked_is_not_a_server_that_is_full() -> None:
    weight, told = Weight(), set()
    for second in range(0, 60, 2):
        told.add(weight.next(0 if second % 10 == 0 and second else 100, float(second)))
    assert min(told) >= 60


def test_a_load_that_stays_is_told_within_seconds_and_forgotten_as_fast() -> None:
    weight = Weight()
    assert weight.next(100, 0.0) == 100
    falling = [weight.next(20, 2.0 * each) for each in range(1, 8)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] < 80
    assert falling[-1] <= 20 + 2 * FALL_STEP
    rising = [weight.next(100, 14 + 2.0 * each) for each in range(1, 18)]
    assert rising[-1] == 100


@given(
    st.lists(st.builds(worker, st.integers(0, 3), st.sampled_from(["ready", "draining"])), max_size=6),
    st.integers(0, 5),
    st.text(max_size=3),
)
def test_the_words_are_those_that_the_agent_itself_takes_back(
    workers: list[dict[str, Any]], target: int, unready: str
) -> None:
    line = answer(status(*workers, target=target), unready, Weight(), 0.0)
    assert re.fullmatch(r"drain|up ready ([1-9][0-9]?|100)%", line)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"state": "lame_duck"}, "the server is a lame duck: it serves, and is about to drain"),
        ({"state": "stopping"}, "the server is stopping"),
        ({"state": "booting"}, "the server is booting"),
        ({"suspended": True}, "accepting is suspended"),
        ({"workers": [worker(0, "starting"), worker(0, "draining")]}, "no worker is ready"),
    ],
)
def test_readiness_says_why_no_new_connections_are_wanted(changes: dict[str, Any], reason: str) -> None:
    assert unready_reason({"state": "serving", "suspended": False, "workers": [worker(0)]} | changes) == reason
