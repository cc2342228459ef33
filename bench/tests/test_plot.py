"""The report: charts that are well formed and stay inside their frame, tables that have everything, JSON both ways."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots, report, roster, works
from bench.errors import BenchError
from bench.generator import Sample
from bench.results import Command, Memory, Results, Series
from bench.svg import WIDTH, Bar, Line, Panel, apart, bars, lines, readable
from bench.table import grid, markdown

SVG = "{http://www.w3.org/2000/svg}"


def everything() -> Results:
    """A run in which everybody did everything, and one of them failed once."""
    results = Results(environment={"Python": "3"}, rounds=2, missing=["the sea"])
    for work in works.FULL:
        table = results.works[work.name] = {}
        for number, each in enumerate((each for each in roster.ALL if each.does(work)), 1):
            table[each.name] = Series()
            sample = Sample(1000, 0.5, number * 10**7, 4, 6, 10**8, 50_000, 90_000, 1_200_000, 10**7, 0, 0)
            table[each.name].add(sample)
            if work is works.ECHO and each is roster.TRIO:
                table[each.name].add(None, "it <fell> & broke")
            else:
                table[each.name].add(sample)
    for number, each in enumerate(roster.ALL):
        results.memory[each.name] = Memory(2**24, 1000.0 + number, 9000.0, 9000)
    results.commands = {"asyncio": Command([0.2, 0.3], {"supervisor": 2**24, "worker": 2**24}, {"supervisor": 1})}
    results.commands["asyncio"].proportional["worker"] = 2**23
    results.redis = {"SET": {"redis-server": Series(rate=[1000.0], cpu_us=[6.5])}}
    return results


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_chart_is_well_formed_described_and_for_light_and_dark() -> None:
    charts = plots.draw(everything())
    assert set(charts) == {"bench-cpu.svg", "bench-works.svg", "bench-growth.svg", "bench-memory.svg"}
    for svg in charts.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        title = root.find(f"{SVG}title")
        assert title is not None
        assert title.text
        assert "prefers-color-scheme: dark" in svg
        assert "uvloop protocol" in texts(svg)


def test_nothing_measured_nothing_drawn() -> None:
    assert plots.draw(Results()) == {}


def test_bars_are_as_long_as_their_values_and_stay_inside() -> None:
    rows = (Bar("a", "ours", (1.0, 2.0)), Bar("b <&>", "theirs", (6.0, 0.0)))
    root = ElementTree.fromstring(bars([Panel("panel", rows), Panel("empty", ())], "note", "what", "us"))
    rects = [{k: float(v) for k, v in r.attrib.items() if k != "class"} for r in root.iter(f"{SVG}rect")]
    assert len(rects) == 4
    assert rects[1]["width"] == pytest.approx(2 * rects[0]["width"], abs=0.2)
    assert rects[2]["width"] == pytest.approx(6 * rects[0]["width"], abs=0.4)
    assert rects[1]["x"] == pytest.approx(rects[0]["x"] + rects[0]["width"], abs=0.2)
    height = float(root.attrib["viewBox"].split()[3])
    assert all(r["x"] + r["width"] <= WIDTH and r["y"] + r["height"] <= height for r in rects)
    assert "b <&>" in [element.text for element in root.iter(f"{SVG}text")]
    assert "3 us" in [element.text for element in root.iter(f"{SVG}text")]


def test_lines_rise_with_their_values_and_stay_inside() -> None:
    data = [Line("up", "ours", (1.0, 10.0, 100.0)), Line("gap", "theirs", (5.0, None, 5.0))]
    root = ElementTree.fromstring(lines("title", "note", (1, 50, 500), data, "what", "us"))
    drawn = [[tuple(map(float, p.split(","))) for p in e.attrib["points"].split()] for e in root.iter(f"{SVG}polyline")]
    (x1, y1), (x2, y2), (x3, y3) = drawn[0]
    assert x1 < x2 < x3
    # A logarithmic axis: ten times as much is the same distance each time, upwards.
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2
    assert len(drawn[1]) == 2
    height = float(root.attrib["viewBox"].split()[3])
    assert all(0 <= x <= WIDTH and 0 <= y <= height for line in drawn for x, y in line)


def test_one_value_alone_can_be_drawn() -> None:
    ElementTree.fromstring(lines("title", "note", (1,), [Line("dot", "ours", (3.0,))], "what", "us"))


@pytest.mark.parametrize("wanted", [[], [5.0], [0.0, 0.0, 0.0], [0.0, 1.0, 50.0, 50.5], [0.0, 100.0]])
def test_labels_do_not_overlap(wanted: list[float]) -> None:
    placed = apart(wanted, 15)
    assert len(placed) == len(wanted)
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(placed))
    assert sum(placed) == pytest.approx(sum(wanted))


def test_numbers_are_short() -> None:
    assert [readable(v) for v in (0.256, 7, 12.34, 50.0, 999.6, 288658)] == [
        "0.26",
        "7",
        "12.3",
        "50",
        "1,000",
        "288,658",
    ]


def test_a_table_is_one_and_its_numbers_are_to_the_right() -> None:
    assert grid(("a", "b"), [("x", "1")]).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_the_document_has_everything() -> None:
    results = everything()
    text = markdown(results, plots.draw(results))
    for work in works.FULL:
        assert work.title in text
    for each in roster.ALL:
        assert each.label in text
    for row in [line for line in text.splitlines() if line.startswith("|")]:
        assert row.endswith("|")
    assert "it <fell> & broke" in text
    assert "* the sea" in text
    assert "What was not measured" in text
    assert set(re.findall(r"\]\((bench-[\w-]+\.svg)\)", text)) == set(plots.draw(results))


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    results = everything()
    assert Results.from_json(results.to_json()) == results
    written = report.write(results, tmp_path)
    assert {path.name for path in written} == {"benchmarks.md", "benchmarks.json", *plots.draw(results)}
    assert report.load(tmp_path) == results
    assert "not measured" in report.summary(Results())


def test_what_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run make bench first"):
        report.load(tmp_path)
    (tmp_path / "benchmarks.json").write_text('{"rounds": 1}')
    with pytest.raises(BenchError, match="run make bench again"):
        report.load(tmp_path)
