"""Which charts a run gives, and what is in them. How a chart is drawn is in `svg.py`."""

from __future__ import annotations

from collections.abc import Sequence

from . import roster, works
from .ratios import split, spread
from .results import Results
from .svg import Bar, Line, Panel, bars, lines
from .table import PLOTS

CONTESTANTS = {each.name: each for each in roster.ALL}
OTHERS = (works.LINES, works.CLOSE, works.ECHO_HUGE, works.TLS_ECHO, works.TLS_BULK, works.TLS_FULL)
CONNECTIONS = (1, 50, 500, 5000)


def draw(results: Results) -> dict[str, str]:
    """Name and text of each chart for which something was measured."""
    charts = {
        "bench-cpu.svg": _cpu(results, [works.ECHO], "bench-cpu.svg"),
        "bench-works.svg": _cpu(results, OTHERS, "bench-works.svg"),
        "bench-growth.svg": _growth(results),
        "bench-memory.svg": _memory(results),
    }
    return {name: chart for name, chart in charts.items() if chart}


def _kind(name: str) -> str:
    return "floor" if name == roster.FLOOR.name else "ours" if CONTESTANTS[name].ours else "theirs"


def _middle(values: Sequence[float | None]) -> float:
    found = spread(values)
    return found.median if found is not None else 0.0


def _cpu(results: Results, chosen: Sequence[works.Work], name: str) -> str:
    panels = []
    for work in chosen:
        rows = []
        for contestant, series in results.works.get(work.name, {}).items():
            parts = split(series.cpu_us, series.user_us)
            if parts is not None:
                rows.append(Bar(CONTESTANTS[contestant].label, _kind(contestant), parts))
        if rows:
            panels.append(Panel(work.title, tuple(sorted(rows, key=lambda bar: bar.total))))
    note = "the server's CPU time for one, us: user time (strong) and system time (pale)"
    return bars(panels, note, PLOTS[name], "us") if panels else ""


def _growth(results: Results) -> str:
    chosen = [work for work in works.FULL if work.size == 1024 and not work.tls and work.connections in CONNECTIONS]
    by_count = {work.connections: work for work in chosen}
    data = []
    for name, contestant in CONTESTANTS.items():
        values = tuple(_middle(results.column(by_count[count].name, name, "cpu_us")) or None for count in CONNECTIONS)
        if all(values):
            data.append(Line(contestant.label, _kind(name), values))
    note = "the server's CPU time for one, us, at 1, 50, 500 and 5,000 connections"
    return lines("echo 1 KiB", note, CONNECTIONS, data, PLOTS["bench-growth.svg"], "us") if data else ""


def _memory(results: Results) -> str:
    panels = []
    for title, field in (("In the clear", "plain"), ("By TLS 1.3", "tls")):
        found = {name: getattr(each, field) for name, each in results.memory.items()}
        rows = [Bar(CONTESTANTS[name].label, _kind(name), (value,)) for name, value in found.items() if value]
        if rows:
            panels.append(Panel(title, tuple(sorted(rows, key=lambda bar: bar.total))))
    note = "resident bytes of the server's process for an idle connection"
    return bars(panels, note, PLOTS["bench-memory.svg"], "B") if panels else ""
