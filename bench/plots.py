"""Choose which charts a run gives, and what is in them. Drawing does not belong here; see `charts.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from . import roster, works
from .charts import DARK, LIGHT, Bar, Line, Panel, Theme, bars, lines
from .ratios import split, spread
from .results import Results

CONTESTANTS = {each.name: each for each in roster.ALL}
OTHERS = (works.LINES, works.CLOSE, works.ECHO_HUGE, works.TLS_ECHO, works.TLS_BULK, works.TLS_FULL)
CONNECTIONS = (1, 50, 500, 5000)
NOTE = "server CPU time per exchange in us: user time (strong) and system time (pale)"


def draw(results: Results) -> dict[str, str]:
    """Return name and text of each chart for which something was measured: NAME.svg and NAME-dark.svg."""
    charts = {
        "bench-cpu": _cpu(results, [works.ECHO]),
        "bench-works": _cpu(results, OTHERS),
        "bench-growth": _growth(results),
        "bench-memory": _memory(results),
    }
    drawn = {name: chart for name, chart in charts.items() if chart is not None}
    return {f"{name}{end}.svg": chart(theme) for name, chart in drawn.items() for end, theme in _THEMES}


_THEMES = (("", LIGHT), ("-dark", DARK))


def _kind(name: str) -> str:
    return "floor" if name == roster.FLOOR.name else "ours" if CONTESTANTS[name].ours else "theirs"


def _median(values: Sequence[float | None]) -> float:
    found = spread(values)
    return found.median if found is not None else 0.0


def _cpu(results: Results, chosen: Sequence[works.Work]) -> Callable[[Theme], str] | None:
    panels = []
    for work in chosen:
        rows = []
        for contestant, series in results.works.get(work.name, {}).items():
            parts = split(series.cpu_us, series.user_us)
            if parts is not None:
                rows.append(Bar(CONTESTANTS[contestant].label, _kind(contestant), parts))
        if rows:
            panels.append(Panel(work.title, tuple(sorted(rows, key=lambda bar: bar.total))))
    return partial(bars, panels, NOTE, "us") if panels else None


def _growth(results: Results) -> Callable[[Theme], str] | None:
    chosen = [work for work in works.FULL if work.size == 1024 and not work.tls and work.connections in CONNECTIONS]
    by_count = {work.connections: work for work in chosen}
    data = []
    for name, contestant in CONTESTANTS.items():
        values = tuple(_median(results.column(by_count[count].name, name, "cpu_us")) or None for count in CONNECTIONS)
        if all(values):
            data.append(Line(contestant.label, _kind(name), values))
    note = "server CPU time per exchange in us, at 1, 50, 500 and 5,000 connections"
    return partial(lines, "echo 1 KiB", note, CONNECTIONS, data, "us") if data else None


def _memory(results: Results) -> Callable[[Theme], str] | None:
    panels = []
    for title, field in (("Plain TCP", "plain"), ("TLS 1.3", "tls")):
        found = {name: getattr(each, field) for name, each in results.memory.items()}
        rows = [Bar(CONTESTANTS[name].label, _kind(name), (value,)) for name, value in found.items() if value]
        if rows:
            panels.append(Panel(title, tuple(sorted(rows, key=lambda bar: bar.total))))
    return partial(bars, panels, "resident bytes of the server's process per idle connection", "B") if panels else None
