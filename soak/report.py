"""Results: one row for each thing measured, the table of them, and the document that keeps the last one.

Knows nothing of how anything was measured.
"""

from __future__ import annotations

import enum
import os
import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import HarnessError


class Verdict(enum.StrEnum):
    """What a row says of the server. All but the first two make the exit status non-zero."""

    GOOD = "good"
    MEASURED = "measured"
    """There is a figure, and no target."""
    BAD = "BAD"
    ABSENT = "NOT THERE"
    """This version has no such feature."""
    BLIND = "BLIND"
    """The harness could not measure it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One result. `n` is what the figure is of; `bound` the 95 % bound of a zero (3/N), or empty."""

    scenario: str
    what: str
    figure: str
    n: int
    target: str
    verdict: Verdict
    bound: str = ""
    details: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether it speaks for the server, or not against it."""
        return self.verdict in (Verdict.GOOD, Verdict.MEASURED)


def upper_bound(n: int) -> str:
    """What a zero of `n` leaves open at 95 % confidence: 3/N (the rule of three)."""
    return f"{3 / n:.1g}" if n else "everything"


def zero(scenario: str, what: str, lost: int, n: int, unit: str, details: Sequence[str], sound: bool = True) -> Row:
    """The row for something that must not happen: `lost` of `n`. `sound`: the witnesses agree, and all of it was done.

    Nothing tried is nothing shown.
    """
    good = lost == 0 and sound and n > 0
    bound = f"<= {upper_bound(n)}" if lost == 0 else ""
    verdict = Verdict.GOOD if good else Verdict.BAD
    return Row(scenario, what, f"{lost} of {n:,} {unit}", n, "0", verdict, bound, tuple(details))


def absent(scenario: str, what: str, missing: str) -> Row:
    """The row for a feature that this version does not have."""
    return Row(scenario, what, f"this version has no {missing}", 0, "0", Verdict.ABSENT)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the maximum, by the nearest rank; of nothing: nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    found = {f"p{p}": ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in (50, 90, 99)}
    return {**found, "max": ordered[-1]}


def in_words(values: Sequence[float], unit: str = "ms", scale: float = 1000.0) -> str:
    """`p50 12.1 ms, p90 ...`."""
    found = percentiles(values)
    digits = 1 if scale > 1 else 2
    return (
        ", ".join(f"{name} {value * scale:.{digits}f}" for name, value in found.items()) + f" {unit}"
        if found
        else "none"
    )


# --- the table --------------------------------------------------------------------------------------------------------

_COLUMNS = ("scenario", "what", "figure", "N", "3/N", "target", "verdict")


def _cells(row: Row) -> tuple[str, ...]:
    return (row.scenario, row.what, row.figure, f"{row.n:,}", row.bound, row.target, str(row.verdict))


def table(rows: Sequence[Row]) -> str:
    """All rows, in columns, for a terminal."""
    cells = [_COLUMNS, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def markdown(rows: Sequence[Row]) -> str:
    """All rows, as a table of a document."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def machine() -> str:
    """What all of it was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"


# --- the document -----------------------------------------------------------------------------------------------------

_BEGIN, _END = "<!-- measured: written by `--write` -->", "<!-- end of what was measured -->"


def around(document: Path) -> tuple[str, str, str]:
    """What is before, in and behind the result in `document`. Raises HarnessError if it has no place for one."""
    try:
        before, begin, rest = document.read_text().partition(_BEGIN)
    except OSError as exc:
        raise HarnessError(f"{document}: {os.strerror(exc.errno or 0).lower()}") from exc
    measured, end, after = rest.partition(_END)
    if not begin or not end:
        raise HarnessError(f"{document} has no lines {_BEGIN} and {_END} to put the result between")
    return before, measured, after


def write(document: Path, rows: Sequence[Row], command: str, seconds: float) -> None:
    """Put a run into `document`, above those before it, of which those scenarios stay that this one has not measured.

    Raises HarnessError if it has no place for it.
    """
    before, measured, after = around(document)
    kept = _without(measured, {row.scenario for row in rows})
    details = "\n".join(f"* {row.scenario}: {line}" for row in rows for line in row.details)
    took = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    head = f"{_RUN}{time.strftime('%Y-%m-%d')}: `{command}`\n\n{machine()}, {took}."
    runs = "\n\n".join([f"{head}\n\n{markdown(rows)}\n\n{details}", *kept])
    document.write_text(f"{before}{_BEGIN}\n\n{runs}\n\n{_END}{after}")


_RUN = "### "


def _without(measured: str, scenarios: Collection[str]) -> list[str]:
    """The runs, without the rows and details of `scenarios`; a run of which no row is left goes."""
    runs = []
    for run in measured.split(f"\n{_RUN}")[1:]:
        lines = [line for line in run.strip().splitlines() if _scenario_of(line) not in scenarios]
        if any(_scenario_of(line) not in ("", _COLUMNS[0]) for line in lines if line.startswith("|")):
            runs.append(_RUN + "\n".join(lines))
    return runs


def _scenario_of(line: str) -> str:
    """Of a row of a table, or a detail; "" for anything else, the table's rule included."""
    if line.startswith("| ") and not line.startswith("| ---"):
        return line[2:].partition(" |")[0]
    return line[2:].partition(":")[0] if line.startswith("* ") else ""
