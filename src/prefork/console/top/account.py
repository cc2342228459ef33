"""The page of the account: where every accepted connection went, what was refused, and how long things took.

Pure: a snapshot and its rates become lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from . import figures
from .facts import Histogram, Snapshot
from .lines import EMPTY, Line, Tone, block, plain, quiet, width_of
from .rates import Rates

#: The width of one column of the page, from which on two fit side by side.
COLUMN = 52
_NAME, _BAR = 24, 12


def account(snapshot: Snapshot, rates: Rates, width: int, height: int) -> list[Line]:
    """Return exactly `height` lines, in two columns where they fit."""
    left = [*_closed(snapshot, rates), EMPTY, *_refused(snapshot, rates)]
    right = [*_times(snapshot), EMPTY, *_totals(snapshot), EMPTY, *_handshakes(snapshot)]
    if width >= 2 * COLUMN:
        return block(_beside(left, right), height)
    return block([*left, EMPTY, *right], height)


def _closed(snapshot: Snapshot, rates: Rates) -> list[Line]:
    totals = snapshot.totals
    ended = sum(totals.closed.values())
    lines = [_title("Connections", "total", "/s")]
    lines += [
        _row("accepted", totals.accepted, rates.total.accepted, None, Tone.STRONG),
        _row("open", snapshot.open, None, None, Tone.STRONG),
        _row("closed", ended, None, None, Tone.STRONG),
    ]
    if not totals.closed:
        return [*lines, quiet("  the server does not say for which reasons")]
    return [*lines, *_reasons(totals.closed, rates.closed, ended)]


def _refused(snapshot: Snapshot, rates: Rates) -> list[Line]:
    totals = snapshot.totals
    lines = [_title("Refused", "total", "/s")]
    if not totals.refused:
        return [*lines, quiet("  nothing was refused")]
    lines.append(_row("refused", totals.refused, rates.total.refused, None, Tone.STRONG))
    return [*lines, *_reasons(totals.refusals, rates.refusals, totals.refused)]


def _handshakes(snapshot: Snapshot) -> list[Line]:
    found = {name: number for name, number in snapshot.totals.handshakes.items() if number}
    if not found:
        return [_title("TLS handshakes", "total", ""), quiet("  there was none")]
    return [_title("TLS handshakes", "total", ""), *_reasons(found, {}, sum(found.values()))]


def _times(snapshot: Snapshot) -> list[Line]:
    """Return what half, and what nearly all, stay below; histograms know no more than the bucket."""
    totals = snapshot.totals
    return [
        _title("Times since the start", "p50", "p99"),
        _quantiles("connections", totals.durations),
        _quantiles("TLS handshakes", totals.handshake_durations),
        _quantiles("lag of the loops", totals.lags),
    ]


def _quantiles(name: str, histogram: Histogram) -> Line:
    found = [figures.quantile(histogram.bounds, histogram.counts, part) for part in (0.5, 0.99)]
    return plain(f"{name:<{_NAME}}" + "".join(f"{each:>8}" for each in found))


def _totals(snapshot: Snapshot) -> list[Line]:
    totals = snapshot.totals
    return [
        _title("Traffic and failures", "total", ""),
        _text_row("bytes received", figures.size(totals.received)),
        _text_row("bytes sent", figures.size(totals.sent)),
        _row("handler failures", totals.failures, None, None, Tone.BAD if totals.failures else Tone.PLAIN),
        _row("log lines dropped", totals.log_dropped, None, None, Tone.WARNING if totals.log_dropped else Tone.PLAIN),
    ]


def _reasons(totals: Mapping[str, int], rates: Mapping[str, float | None], whole: int) -> list[Line]:
    """Return a row for each reason, those that never occurred in one line at the end."""
    named = sorted(totals.items(), key=lambda each: -each[1])
    lines = [_row(f"  {name.replace('_', ' ')}", number, rates.get(name), whole) for name, number in named if number]
    never = [name.replace("_", " ") for name, number in named if not number]
    return [*lines, *_never(never)]


def _never(names: Sequence[str]) -> list[Line]:
    """Return the names in lines as wide as the column."""
    text = f"never: {', '.join(names)}" if names else ""
    return [quiet(f"  {line}") for line in textwrap.wrap(text, COLUMN - 4, subsequent_indent="  ")]


def _title(name: str, *columns: str) -> Line:
    heads = "".join(f"{each:>8}" for each in columns)
    return ((f"{name:<{_NAME}}{heads}".ljust(COLUMN - 2), Tone.HEADING),)


def _row(name: str, total: int, rate: float | None, whole: int | None, tone: Tone = Tone.PLAIN) -> Line:
    numbers = f"{figures.count(total):>8}{figures.rate(rate) if rate is not None else '':>8}"
    drawn = f"  {figures.bar(total, whole, _BAR - 4)}" if whole else ""
    return ((f"{name:<{_NAME}}", tone), (numbers, tone), (drawn, Tone.QUIET))


def _text_row(name: str, value: str) -> Line:
    return plain(f"{name:<{_NAME}}{value:>8}")


def _beside(left: Sequence[Line], right: Sequence[Line]) -> list[Line]:
    lines = []
    for index in range(max(len(left), len(right))):
        first = left[index] if index < len(left) else EMPTY
        second = right[index] if index < len(right) else EMPTY
        lines.append((*first, (" " * (COLUMN - width_of(first)), Tone.PLAIN), *second))
    return lines
