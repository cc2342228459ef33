"""Writing a run's report, and reading it again: Markdown, JSON and plots, in one folder.

The data of each Python is a file of its own; the page has a section for each that is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from prefork.errors import reason_of

from . import plots, works
from .errors import BenchError
from .results import Results
from .table import LABELS, markdown
from .targets import NOT_MEASURED, judge

TITLES = {work.name: work.title for work in works.FULL}
TEXT, DATA = "benchmarks.md", "benchmarks-{python}.json"


def write(results: Results, folder: Path) -> list[Path]:
    """Write the run's data, and the page with it and the runs of other Pythons in `folder`; return all paths.

    Raises BenchError if the data of another Python is unreadable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / DATA.format(python=results.python)
    data.write_text(results.to_json())
    return [data, *render(load(folder), folder)]


def render(runs: Sequence[Results], folder: Path) -> list[Path]:
    """Write the page and its plots, which are of the first run; return their paths."""
    drawn = plots.draw(runs[0])
    contents = {TEXT: markdown(runs, drawn), **drawn}
    for name, text in contents.items():
        (folder / name).write_text(text)
    return [folder / name for name in contents]


def load(folder: Path) -> list[Results]:
    """Return the runs in `folder`, that of the newest Python first. Raises BenchError if there is none, or another
    thing than a run."""
    runs = [_read(path) for path in folder.glob(DATA.format(python="*"))]
    if not runs:
        raise BenchError(f"{folder}: no {DATA.format(python='3.x')} is there; run make bench first")
    return sorted(runs, key=lambda run: [int(part) for part in re.findall(r"\d+", run.python)], reverse=True)


def _read(path: Path) -> Results:
    try:
        run = Results.from_json(path.read_text())
        if path.name != DATA.format(python=run.python):
            raise ValueError(f"it is of Python {run.python}")
        return run
    except OSError as exc:
        raise BenchError(f"{path}: {reason_of(exc)}; run make bench first") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BenchError(f"{path} is not a report of this version ({exc}); run make bench again") from exc


def summary(results: Results, partial: bool) -> str:
    """Return the check of the targets for a terminal, a line for each; of a `partial` run only what it measured."""
    found = [each for each in judge(results) if not (partial and each.verdict == NOT_MEASURED)]
    if not found:
        return "no target is about what was measured"
    width = max(len(each.verdict) for each in found)
    return "\n".join(f"{each.verdict.ljust(width)}  {each.text}" for each in found)


def failures(results: Results) -> list[str]:
    """Return a line for each work that a contestant failed in some round, with the last reason."""
    return [
        f"{LABELS[name]}, {TITLES[work]}, {series.cpu_us.count(None)} of {len(series.cpu_us)} rounds: {series.failure}"
        for work, table in results.works.items()
        for name, series in table.items()
        if series.failure
    ]


def is_void(results: Results) -> bool:
    """Return whether works were asked for, and not one was measured."""
    columns = [series.cpu_us for table in results.works.values() for series in table.values()]
    return bool(columns) and all(value is None for column in columns for value in column)
