"""Medians, ratios and verdicts; the order of contestants; cores; the verdicts of a run on its targets."""

from __future__ import annotations

import itertools

import pytest

from bench import roster, targets, works
from bench.cores import Cores, choose
from bench.errors import BenchError
from bench.memory import affordable
from bench.ratios import Ratio, growth, ratio, split, spread, verdict
from bench.results import Command, Memory, Results, Series
from bench.rounds import turns


def test_a_spread_is_of_the_rounds_that_have_a_value() -> None:
    found = spread([3.0, None, 1.0, 8.0])
    assert found is not None
    assert (found.median, found.least, found.most) == (3.0, 1.0, 8.0)
    assert spread([None]) is None
    assert spread([]) is None


def test_a_ratio_is_computed_within_each_round() -> None:
    # The last two rounds were twice as dear for both.
    found = ratio([10.0, 12.0, 10.0, 24.0, 36.0], [20.0, 20.0, 20.0, 40.0, 40.0])
    assert found is not None
    assert found.value == 12 / 20
    assert (found.least, found.most) == (0.5, 0.9)


def test_a_ratio_uses_the_rounds_that_both_servers_have() -> None:
    found = ratio([10.0, None, 8.0], [None, 5.0, 16.0])
    assert found == Ratio((0.5,))
    assert ratio([None, 1.0], [1.0, None]) is None
    assert ratio([1.0], [0.0]) is None
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0], [1.0, 2.0])


def test_the_split_adds_up_all_rounds() -> None:
    assert split([10.0, 30.0, 20.0], [10.0, 0.0, 5.0]) == (5.0, 15.0)
    assert split([4.0, None], [1.0, None]) == (1.0, 3.0)
    assert split([None], [None]) is None


def test_growth_keeps_the_rounds() -> None:
    assert growth([2.0, None, 4.0], [3.0, 1.0, None]) == [1.5, None, None]


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ((0.8, 0.9, 0.85), "met"),
        ((0.91, 1.0), "missed"),
        ((0.8, 0.9, 0.95), "met (2 of 3 rounds met it)"),
        ((0.8, 0.95, 0.96), "missed (1 of 3 rounds met it)"),
        ((0.8, 0.98), "met (1 of 2 rounds met it)"),
    ],
)
def test_a_verdict_says_where_rounds_disagree(rounds: tuple[float, ...], said: str) -> None:
    assert verdict(Ratio(rounds), 0.9) == said


def test_a_target_without_a_measurement_has_no_verdict() -> None:
    assert verdict(None, 1.0) == "not measured"


def test_each_server_runs_once_in_each_round_and_none_is_always_first() -> None:
    orders = [turns(roster.ALL, works.ECHO, number) for number in range(5)]
    able = [each for each in roster.ALL if each.does(works.ECHO)]
    assert roster.UVLOOP_JOINED not in able
    assert all(sorted(order, key=able.index) == able for order in orders)
    assert len({order[0].name for order in orders}) > 3
    followers = {(a.name, b.name) for order in orders for a, b in itertools.pairwise(order)}
    assert (able[0].name, able[1].name) in followers
    assert (able[1].name, able[0].name) in followers


def test_a_server_runs_only_the_works_that_it_supports() -> None:
    assert roster.FLOOR not in turns(roster.ALL, works.TLS_ECHO, 0)
    assert roster.UVLOOP_JOINED in turns(roster.ALL, works.LINES, 0)
    assert turns([roster.FLOOR], works.TLS_ECHO, 1) == []


def test_server_and_generator_are_on_cores_of_their_own() -> None:
    assert choose({0: frozenset({0}), 1: frozenset({1})}) == Cores(server=1, generator=0)
    # 2 and 3 are one core with two threads, and so are 0 and 1.
    pairs = {0: frozenset({0, 1}), 1: frozenset({0, 1}), 2: frozenset({2, 3}), 3: frozenset({2, 3})}
    assert choose(pairs) == Cores(server=3, generator=1)
    # Better the same core than none at all.
    assert choose({2: frozenset({2, 3}), 3: frozenset({2, 3})}) == Cores(server=3, generator=2)
    with pytest.raises(BenchError, match="a CPU each"):
        choose({0: frozenset({0})})


def test_idle_connections_stay_within_the_limits() -> None:
    assert affordable(9000, 20_000, 2**40, tls=True) == 9000
    assert affordable(9000, 1024, 2**40, tls=False) == 824
    assert affordable(9000, 20_000, 2**30, tls=True) < 1000
    assert affordable(9000, 20_000, 2**30, tls=False) == 9000


def test_names_are_unique_and_targets_can_be_met() -> None:
    assert len({work.name for work in works.FULL}) == len(works.FULL)
    assert set(works.QUICK) <= set(works.FULL)
    assert sorted(works.REPORTED, key=works.FULL.index) == list(works.FULL)
    assert len({each.name for each in roster.ALL}) == len(roster.ALL)
    for target in targets.TARGETS:
        assert target.work in works.FULL
        assert target.peer.does(target.work), target


def measured(**cpu_us: list[float | None]) -> Results:
    """A run of one work, "echo 1 KiB, 50 connections", with these figures."""
    series = {name.replace("_", "-"): Series(cpu_us=values) for name, values in cpu_us.items()}
    return Results(rounds=3, works={works.ECHO.name: series})


def test_targets_are_judged_by_ratios() -> None:
    results = measured(prefork=[8.0, 9.0, 10.0], uvloop_streams=[10.0, 10.0, 10.0], prefork_streams=[12.0, 12.0, None])
    judged = {(each.work, each.against): each for each in targets.judge(results)}
    plain = judged[(works.ECHO.title, "uvloop streams")]
    assert plain.limit == "0.90"
    assert plain.on_asyncio == "0.90 (0.80 to 1.00), met (2 of 3 rounds met it)"
    assert plain.on_uvloop == "not measured"
    unchanged = judged[(f"{works.ECHO.title}, unchanged (reader, writer)", "uvloop streams")]
    assert unchanged.on_asyncio == "1.20 (1.20 to 1.20), missed"
    assert judged[(works.ECHO.title, "Tornado")].on_asyncio == "not measured"


def test_targets_of_growth_memory_and_start() -> None:
    results = measured(prefork=[8.0], c=[4.0])
    results.works[works.ECHO_MANY.name] = {"prefork": Series(cpu_us=[12.0]), "c": Series(cpu_us=[8.0])}
    results.memory = {
        "prefork": Memory(base=1, plain=2600, tls=17_000, connections=9000),
        "prefork-uvloop": Memory(base=1, plain=2601, connections=9000),
        "uvloop-streams": Memory(tls=20_000),
    }
    results.commands = {"asyncio": Command(start_seconds=[0.2, 0.25, 0.3])}
    judged = {each.work: each for each in targets.judge(results)}
    assert judged["echo 1 KiB, growth from 50 to 5,000 connections"].on_asyncio == "0.75 (0.75 to 0.75), met"
    idle = judged["resident bytes for an idle connection"]
    assert (idle.on_asyncio, idle.on_uvloop) == ("2,600 B, met", "2,601 B, missed")
    by_tls = judged["the same by TLS 1.3"]
    assert (by_tls.on_asyncio, by_tls.on_uvloop) == ("0.85, missed", "not measured")
    start = judged["`prefork serve`, start to READY, 2 workers"]
    assert (start.on_asyncio, start.on_uvloop) == ("250 ms (200 to 300), met", "not measured")


def test_a_run_with_nothing_in_it_has_every_target_and_no_verdict() -> None:
    for each in targets.judge(Results()):
        assert each.on_asyncio == "not measured"
        assert each.on_uvloop in ("not measured", "")
