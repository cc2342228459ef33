"""The table of what became of the faults, and the document that keeps the last one.

Knows nothing of how anything was observed.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soak.errors import HarnessError
from soak.report import machine

from .cases import Case, Role
from .errnos import EXEMPT
from .verdict import Failure, Good

_BEGIN, _END = "<!-- measured: written by `--write` -->", "<!-- end of what was measured -->"
_COLUMNS = ("process", "call", "errors", "faults", *map(str, Good), "FAILED")


@dataclass(frozen=True, slots=True)
class Result:
    """One case, its verdict, and what the server said in the end."""

    case: Case
    verdict: tuple[Failure, ...] | Good
    last_words: str = ""

    @property
    def failed(self) -> bool:
        """Whether it speaks against the server."""
        return not isinstance(self.verdict, Good)

    def __str__(self) -> str:
        what = ", ".join(self.verdict) if isinstance(self.verdict, tuple) else str(self.verdict)
        return f"{self.case}: {what}" + (f" ({self.last_words})" if self.last_words else "")


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """A row for each call of each process, and one for all."""
    groups: dict[tuple[Role, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.case.role, result.case.call].append(result)
    ordered = sorted(groups, key=lambda key: (list(Role).index(key[0]), key[1]))
    found = [_row(str(role), call, groups[role, call]) for role, call in ordered]
    return [*found, _row("all", "", results)]


def _row(role: str, call: str, results: Sequence[Result]) -> tuple[str, ...]:
    counts = Counter(result.verdict for result in results if not result.failed)
    failed = sum(result.failed for result in results)
    errors = sorted({result.case.error for result in results}) if call else []
    return (role, call, " ".join(errors), str(len(results)), *(str(counts[good]) for good in Good), str(failed))


def table(results: Sequence[Result]) -> str:
    """All rows, in columns, for a terminal; without the names of the errors, which are many."""
    cells = [[*line[:2], *line[3:]] for line in [_COLUMNS, *rows(results)]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def summary(results: Sequence[Result], cases: int) -> str:
    """One line: how many, and what became of them."""
    *_, (_, _, _, count, *goods, failed) = rows(results)
    parts = [f"{n} {good}" for n, good in zip(goods, Good, strict=True)]
    return f"{count} faults of {cases} that there are: {', '.join(parts)}, {failed} FAILED"


def check(document: Path) -> None:
    """Raises HarnessError if it has no place for a result."""
    _around(document)


def write(document: Path, results: Sequence[Result], cases: int, command: str, seconds: float) -> None:
    """Put a run in place of the one before. Raises HarnessError if there is no place for it."""
    before, after = _around(document)
    lines = [f"| {' | '.join(line)} |" for line in [_COLUMNS, ("---",) * len(_COLUMNS), *rows(results)]]
    failures = [f"* {result}" for result in results if result.failed] or ["None."]
    head = f"{time.strftime('%Y-%m-%d')}, `{command}`: {machine()}, {seconds / 60:.0f} minutes."
    exempt = [f"* `{call}`: {why}" for call, why in EXEMPT.items()]
    parts = [head, summary(results, cases), "\n".join(lines), "### Failures", "\n".join(failures)]
    parts += ["### Calls that are not made to fail", "\n".join(exempt)]
    text = "\n\n".join(parts)
    document.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


def _around(document: Path) -> tuple[str, str]:
    try:
        before, begin, rest = document.read_text().partition(_BEGIN)
    except OSError as exc:
        raise HarnessError(f"{document}: {os.strerror(exc.errno or 0).lower()}") from exc
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise HarnessError(f"{document} has no lines {_BEGIN} and {_END} to put the result between")
    return before, after
