"""Medians, ratios and verdicts; the order of contestants; cores; the verdicts of a run on its targets."""

from __future__ import annotations

import itertools

import pytest

from bench import report, roster, targets, works
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


def judged(results: Results) -> dict[str, str]:
    """The verdict of each line, by its text."""
    return {each.text: each.verdict for each in targets.judge(results)}


def test_targets_are_judged_by_ratios() -> None:
    results = measured(
        prefork=[9.0, 10.3, 12.0], uvloop_protocol=[10.0, 10.0, 10.0], prefork_streams=[12.0, 12.0, None]
    )
    found = judged(results)
    line = (
        "echo 1 KiB, 50 connections: 1.030 of uvloop protocol "
        "(at most 1.05; 1.35 with asyncio.Task; rounds 0.900 to 1.200, 2 of 3 rounds met it)"
    )
    assert found[line] == "met"
    line = (
        "prefork, unchanged (reader, writer): echo 1 KiB, 50 connections: 1.200 of uvloop protocol "
        "(at most 1.15; 1.45 with asyncio.Task; rounds 1.200 to 1.200)"
    )
    assert found[line] == "missed"
    line = "echo 1 KiB, 50 connections: of uvloop streams (at most 0.55; 0.75 with asyncio.Task)"
    assert found[line] == "not measured"


def test_targets_of_growth_memory_and_start() -> None:
    results = measured(prefork=[8.0], c=[4.0])
    results.works[works.ECHO_MANY.name] = {"prefork": Series(cpu_us=[12.0]), "c": Series(cpu_us=[8.0])}
    results.memory = {
        "prefork": Memory(base=1, plain=1301, tls=17_000, connections=9000),
        "uvloop-streams": Memory(tls=20_000),
    }
    results.commands = {"asyncio": Command(start_seconds=[0.2, 0.22, 0.3])}
    found = judged(results)
    growth = "echo 1 KiB, growth from 50 to 5,000 connections: 0.750 of the growth of C"
    assert found[f"{growth} (at most 1.00; rounds 0.750 to 0.750)"] == "met"
    idle = "resident bytes of an idle connection"
    assert found[f"{idle}: 1,301 (at most 1,300; 1,600 with asyncio.Task)"] == "missed"
    assert found[f"{idle} by TLS 1.3: 0.850 of uvloop streams (at most 0.80; rounds 0.850 to 0.850)"] == "missed"
    start = "prefork serve, start to READY, 2 workers"
    assert found[f"{start}: 220 ms (at most 220 ms; rounds 200 to 300)"] == "met"


def test_a_run_with_nothing_in_it_has_every_target_and_no_verdict() -> None:
    assert set(judged(Results()).values()) == {"not measured"}
    assert len(judged(Results())) == len(targets.TARGETS) + 4


def test_a_partial_run_is_judged_by_what_it_measured() -> None:
    results = measured(prefork=[9.0], uvloop_protocol=[10.0])
    (line,) = report.summary(results, partial=True).splitlines()
    assert line.startswith("met  echo 1 KiB, 50 connections: 0.900 of uvloop protocol")
    assert len(report.summary(results, partial=False).splitlines()) == len(targets.TARGETS) + 4
    assert "no target" in report.summary(Results(), partial=True)


def test_a_run_of_the_targets_measures_what_they_compare() -> None:
    for target in targets.TARGETS:
        assert target.work in targets.WORKS
        assert {target.ours, target.peer} <= set(targets.CONTESTANTS)
    assert works.ECHO_MANY in targets.WORKS
    assert set(targets.IDLERS) <= set(targets.CONTESTANTS)
