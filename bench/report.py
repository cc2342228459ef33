"""Writing a run's report, and reading it again: Markdown, JSON and plots, in one folder."""

from __future__ import annotations

from pathlib import Path

from prefork.errors import reason_of

from . import plots
from .errors import BenchError
from .results import Results
from .table import markdown
from .targets import judge

TEXT, DATA = "benchmarks.md", "benchmarks.json"


def write(results: Results, folder: Path) -> list[Path]:
    """Write all files; their paths. Plots for which nothing was measured are not drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results)
    contents = {DATA: results.to_json(), TEXT: markdown(results, drawn), **drawn}
    for name, text in contents.items():
        (folder / name).write_text(text)
    return [folder / name for name in contents]


def load(folder: Path) -> Results:
    """What `write` wrote. Raises BenchError if it is not there or is something else."""
    path = folder / DATA
    try:
        return Results.from_json(path.read_text())
    except OSError as exc:
        raise BenchError(f"{path}: {reason_of(exc)}; run make bench first") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise BenchError(f"{path} is not a report of this version ({exc}); run make bench again") from exc


def summary(results: Results) -> str:
    """Return the table of targets and verdicts for a terminal, its columns aligned."""
    head = ("work", "CPU time against", "at most", "prefork", "prefork on uvloop")
    rows = [head, *((each.work, each.against, each.limit, each.on_asyncio, each.on_uvloop) for each in judge(results))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
