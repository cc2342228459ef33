"""Turn results into the report's Markdown. Measuring, targets and files do not belong here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from . import method, roster, works
from .ratios import Spread, ratio, split, spread
from .results import Results, Series
from .works import Work

LABELS = {each.name: each.label for each in roster.ALL}
#: From here on the generator had no time left, and the rate is its own, not the server's.
SATURATED = 0.97
PLOTS = {
    "bench-cpu": "CPU time for one echo of 1 KiB, for each server, user and system time apart",
    "bench-works": "CPU time for one exchange of six other works, for each server",
    "bench-growth": "CPU time for one echo of 1 KiB at 1, 50, 500 and 5,000 connections",
    "bench-memory": "Resident bytes for an idle connection, plain and with TLS",
}
#: Below this difference two servers count as equal: rounds of one pair differ by as much.
EQUAL = 0.03


def markdown(runs: Sequence[Results], plots: Iterable[str]) -> str:
    """Return the whole document: a section for each run; `plots` are the names of those drawn of the first one."""
    parts = ["# Benchmarks", method.INTRODUCTION]
    for number, results in enumerate(runs):
        parts += _section(results, set(plots) if number == 0 else set(), open_works=number == 0)
    parts += [
        "## How it is measured",
        method.METHOD,
        "## The servers",
        method.SERVERS,
        "## What was not measured",
        method.NOT_MEASURED,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _section(results: Results, drawn: set[str], open_works: bool) -> list[str]:
    """Return what one Python has; `open_works`: whether the tables of important works are unfolded."""
    return [
        f"## Python {results.python}",
        "### In short",
        method.SHORT,
        _beside_peers(results),
        *_plots(drawn, "bench-cpu", "bench-works"),
        "### CPU time for one exchange",
        method.MATRIX,
        _matrix(results),
        *_plots(drawn, "bench-growth"),
        "### Work by work",
        method.WORKS,
        *_works(results, open_works),
        *_memory(results, drawn),
        *_commands(results),
        *_redis(results),
        "### This run",
        _environment(results),
        *_missing(results),
    ]


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """A Markdown table; columns from `numbers_from` on are aligned to the right."""
    rule = ["---:" if at >= numbers_from else "---" for at in range(len(head))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _beside_peers(results: Results) -> str:
    """Return one row per work, one column per peer: prefork's CPU time as a multiple of the peer's."""
    peers = [each for each in roster.ALL if not each.ours and not each.only and _has(results, each.name)]
    measured = [work for work in works.HEADLINES if roster.PREFORK.name in results.works.get(work.name, {})]
    rows = [(work.title, *(_against(results, work, each.name) for each in peers)) for work in measured]
    return grid(("prefork's CPU time against", *(each.label for each in peers)), rows)


def _has(results: Results, name: str) -> bool:
    return any(name in results.works.get(work.name, {}) for work in works.HEADLINES)


def _against(results: Results, work: Work, peer: str) -> str:
    ours, theirs = (results.column(work.name, name, "cpu_us") for name in (roster.PREFORK.name, peer))
    found = ratio(ours, theirs) if ours and theirs else None
    if found is None:
        return ""
    return f"**{found.value:.2f}**" if found.value < 1 - EQUAL else f"{found.value:.2f}"


def _plots(drawn: set[str], *names: str) -> list[str]:
    return [_picture(name) for name in names if f"{name}.svg" in drawn]


def _picture(name: str) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{name}-dark.svg">'
    return "\n".join(("<picture>", dark, f'<img src="{name}.svg" alt="{PLOTS[name]}">', "</picture>"))


def _number(value: float) -> str:
    """Three significant digits at least, and no more than make sense."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(found: Spread | None) -> str:
    return "" if found is None else f"{_number(found.median)} ({_number(found.least)} to {_number(found.most)})"


def _median(values: Sequence[float | None]) -> str:
    found = spread(values)
    return "" if found is None else _number(found.median)


def _time(microseconds: Sequence[float | None]) -> str:
    found = spread(microseconds)
    if found is None:
        return ""
    value = found.median
    return f"{_number(value / 1000)} ms" if value >= 1000 else f"{_number(value)} us"


def _matrix(results: Results) -> str:
    measured = [work for work in works.HEADLINES if work.name in results.works]
    names = [each.name for each in roster.ALL if any(each.name in results.works[work.name] for work in measured)]
    head = ("us, medians", *(_column_title(work) for work in measured))
    rows = [(LABELS[name], *(_median(results.column(w.name, name, "cpu_us")) for w in measured)) for name in names]
    return grid(head, rows)


def _column_title(work: Work) -> str:
    return work.title.replace(", 50 connections", "")


def _works(results: Results, open_works: bool) -> list[str]:
    parts = []
    for work in works.REPORTED:
        table = results.works.get(work.name)
        if not table:
            continue
        text = _work(table)
        unfolded = open_works and work.headline
        parts.append(f"#### {work.title}\n\n{text}" if unfolded else _folded(work.title, text))
    return parts


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _work(table: dict[str, Series]) -> str:
    head = ("", "a second", "p50", "p99", "p99.9", "CPU us", "user", "system", "against prefork")
    reference = table.get(roster.PREFORK.name)
    rows = [_row(name, series, reference) for name, series in table.items()]
    notes = [f"{LABELS[name]}: {series.failure}" for name, series in table.items() if series.failure]
    busy = [LABELS[name] for name, series in table.items() if _saturated(series)]
    if busy:
        notes.append(f"The generator was busy all the time, and set the rate itself, with {', '.join(busy)}.")
    cold = [LABELS[name] for name, series in table.items() if _refuses_sessions(series, table)]
    if cold:
        notes.append(f"Resumed no session, as it is set up by default: {', '.join(cold)}.")
    return "\n\n".join([grid(head, rows), *(textwrap.fill(note, 118) for note in notes)])


def _row(name: str, series: Series, reference: Series | None) -> tuple[str, ...]:
    compared = ratio(series.cpu_us, reference.cpu_us) if reference is not None else None
    parts = split(series.cpu_us, series.user_us)
    return (
        LABELS[name],
        _median(series.rate),
        _time(series.p50_us),
        _time(series.p99_us),
        _time(series.p999_us),
        _range(spread(series.cpu_us)),
        *(("", "") if parts is None else map(_number, parts)),
        "" if compared is None else f"{compared.value:.2f}",
    )


def _saturated(series: Series) -> bool:
    busy = spread(series.generator_busy)
    return busy is not None and busy.median >= SATURATED


def _refuses_sessions(series: Series, table: dict[str, Series]) -> bool:
    """Whether it resumed nothing at a work at which others did."""
    mine, others = spread(series.resumed), [spread(each.resumed) for each in table.values()]
    return mine is not None and mine.most == 0 and any(each is not None and each.least > 0.9 for each in others)


def _memory(results: Results, drawn: set[str]) -> list[str]:
    if not results.memory:
        return []
    count = max(each.connections for each in results.memory.values())
    head = ("", "at rest, MiB", "bytes for an idle connection", "by TLS 1.3")
    rows = [
        (
            LABELS[name],
            f"{each.base / 2**20:.1f}" if each.base is not None else "",
            f"{each.plain:,.0f}" if each.plain is not None else each.failure,
            f"{each.tls:,.0f}" if each.tls is not None else "",
        )
        for name, each in results.memory.items()
    ]
    text = method.MEMORY.format(count=f"{count:,}")
    return ["### Memory", text, grid(head, rows), *_plots(drawn, "bench-memory")]


def _commands(results: Results) -> list[str]:
    rows = []
    for loop, command in results.commands.items():
        found = spread(command.start_seconds)
        start = "" if found is None else _range(Spread(found.median * 1000, found.least * 1000, found.most * 1000))
        weights = [
            f"{command.resident[name] / 2**20:.1f} ({command.proportional[name] / 2**20:.1f})"
            if name in command.resident
            else ""
            for name in ("supervisor", "worker")
        ]
        rows.append((loop, start, *weights))
    head = ("loop", "start to READY, ms", "supervisor, MiB", "worker, MiB")
    return ["### The command", method.COMMANDS, grid(head, rows)] if rows else []


def _redis(results: Results) -> list[str]:
    if not results.redis:
        return []
    rows = [
        (title, name, _median(series.rate), _range(spread(series.cpu_us)))
        for title, table in results.redis.items()
        for name, series in table.items()
    ]
    return ["### redis-benchmark", method.REDIS, grid(("", "server", "a second", "CPU us"), rows, numbers_from=2)]


def _environment(results: Results) -> str:
    rows = [*results.environment.items(), ("rounds", str(results.rounds))]
    return grid(("", ""), rows, numbers_from=2)


def _missing(results: Results) -> list[str]:
    return ["Left out of this run:\n\n" + "\n".join(f"* {each}" for each in results.missing)] if results.missing else []
