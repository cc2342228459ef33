"""The report: charts that are well formed and stay inside their frame, tables that have everything, JSON both ways."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import plots, report, roster, works
from bench.charts import LIGHT, Bar, Line, Panel, apart, bars, lines, readable
from bench.errors import BenchError
from bench.generator import Sample
from bench.results import Command, Memory, Results, Series
from bench.table import grid, markdown

SVG = "{http://www.w3.org/2000/svg}"
CHARTS = {f"bench-{name}{end}.svg" for name in ("cpu", "works", "growth", "memory") for end in ("", "-dark")}


def everything() -> Results:
    """A run in which every contestant did every work, and one of them failed once."""
    results = Results(environment={"Python": "CPython 3.13.0, OpenSSL 3.0"}, rounds=2, missing=["the sea"])
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


# Drawing takes seconds of a processor's time.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def charts() -> dict[str, str]:
    """Draw all charts once; matplotlib keeps its font files open from then on, so this must precede each test."""
    return plots.draw(everything())


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_each_chart_exists_for_light_and_dark_pages_and_can_be_searched(charts: dict[str, str]) -> None:
    assert set(charts) == CHARTS
    for svg in charts.values():
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
        assert "uvloop protocol" in texts(svg)
    assert charts["bench-cpu.svg"] != charts["bench-cpu-dark.svg"]


def test_the_same_results_give_the_same_files(charts: dict[str, str]) -> None:
    results = everything()
    again = plots.draw(Results(works={works.ECHO.name: results.works[works.ECHO.name]}))
    assert again == {name: charts[name] for name in ("bench-cpu.svg", "bench-cpu-dark.svg")}


def test_without_measurements_no_chart_is_drawn() -> None:
    assert plots.draw(Results()) == {}


def test_bars_show_labels_and_totals_even_of_an_empty_panel(charts: dict[str, str]) -> None:
    rows = (Bar("a", "ours", (1.0, 2.0)), Bar("b <&>", "theirs", (6.0,)))
    shown = texts(bars([Panel("panel", rows), Panel("empty", ())], "note", "us", LIGHT))
    assert {"note", "panel", "empty", "a", "b <&>", "3 us", "6 us"} <= set(shown)


def test_lines_have_a_label_each_and_may_have_gaps(charts: dict[str, str]) -> None:
    data = [Line("up", "ours", (1.0, 10.0, 100.0)), Line("gap", "theirs", (5.0, None, 5.0))]
    assert {"up", "gap", "500"} <= set(texts(lines("title", "note", (1, 50, 500), data, "us", LIGHT)))


def test_a_line_with_one_value_can_be_drawn(charts: dict[str, str]) -> None:
    ElementTree.fromstring(lines("title", "note", (1,), [Line("dot", "ours", (3.0,))], "us", LIGHT))


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


def test_a_table_aligns_its_numbers_to_the_right() -> None:
    assert grid(("a", "b"), [("x", "1")]).splitlines() == ["| a | b |", "| --- | ---: |", "| x | 1 |"]


def test_the_document_has_every_work_and_server(charts: dict[str, str]) -> None:
    results = everything()
    text = markdown([results], charts)
    for work in works.FULL:
        assert work.title in text
    for each in roster.ALL:
        assert each.label in text
    for row in [line for line in text.splitlines() if line.startswith("|")]:
        assert row.endswith("|")
    assert "it <fell> & broke" in text
    assert "* the sea" in text
    assert "What was not measured" in text
    assert set(re.findall(r'"(bench-[\w-]+\.svg)"', text)) == CHARTS


def of_python(version: str) -> Results:
    """A run of one work on that Python."""
    results = everything()
    results.environment = {"Python": f"CPython {version}, OpenSSL 3.0"}
    results.works = {works.ECHO.name: results.works[works.ECHO.name]}
    return results


def test_each_python_has_a_section_and_the_newest_one_the_charts(charts: dict[str, str]) -> None:
    text = markdown([of_python("3.13.0"), of_python("3.11.7")], charts)
    new, old = text.split("## Python 3.13")[1].split("## Python 3.11")
    for section in (new, old):
        assert "### In short" in section
        assert f"\n| {roster.PREFORK_PURE.label} |" in section
    assert f"#### {works.ECHO.title}" in new
    assert f"<summary>{works.ECHO.title}</summary>" in old
    assert "bench-cpu.svg" in new
    assert ".svg" not in old
    assert text.count("## How it is measured") == 1


def test_json_is_read_as_it_was_written(
    tmp_path: Path, charts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "draw", lambda _: charts)
    results = everything()
    assert Results.from_json(results.to_json()) == results
    written = report.write(results, tmp_path)
    assert {path.name for path in written} == {"benchmarks.md", "benchmarks-3.13.json", *charts}
    assert report.load(tmp_path) == [results]


def test_a_run_replaces_only_the_data_of_its_own_python(
    tmp_path: Path, charts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "draw", lambda _: charts)
    for version in ("3.9.1", "3.13.0", "3.11.7", "3.13.1"):
        report.write(of_python(version), tmp_path)
    assert [run.environment["Python"].split(",")[0] for run in report.load(tmp_path)] == [
        "CPython 3.13.1",
        "CPython 3.11.7",
        "CPython 3.9.1",
    ]
    assert re.findall(r"^## Python (.+)$", (tmp_path / "benchmarks.md").read_text(), re.M) == ["3.13", "3.11", "3.9"]


def test_failures_are_told_and_a_run_without_any_figure_is_void() -> None:
    results = everything()
    assert report.failures(results) == [f"{roster.TRIO.label}, {works.ECHO.title}, 1 of 2 rounds: it <fell> & broke"]
    assert not report.is_void(results)
    assert not report.is_void(Results())
    series = Series()
    series.add(None, "connect: Connection refused")
    assert report.is_void(Results(works={works.ECHO.name: {roster.PREFORK.name: series}}))


def test_an_unreadable_results_file_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="run make bench first"):
        report.load(tmp_path)
    path = tmp_path / "benchmarks-3.13.json"
    path.write_text('{"rounds": 1}')
    with pytest.raises(BenchError, match="run make bench again"):
        report.load(tmp_path)
    path.write_text(of_python("3.11.7").to_json())
    with pytest.raises(BenchError, match=r"it is of Python 3\.11"):
        report.load(tmp_path)
