"""Numbers and times as short texts of bounded width, for columns.

Pure. None is an unknown value and is shown as `-`. Nothing here knows what a number means.
"""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "-"
#: What bars are drawn with, and what replaces it where a terminal has ASCII only.
FULL_CELL, EMPTY_CELL = "█", "░"
ASCII_CELLS = str.maketrans({FULL_CELL: "#", EMPTY_CELL: "."})
#: The maximum width of what `count`, `size`, `rate` and `share` return, in characters.
NUMBER_WIDTH = 4
#: The maximum width of what `age` and `delay` return, in characters.
TIME_WIDTH = 5
_UNITS = "KMGTPE"
_TOO_LARGE = "huge"
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400


def count(value: float | None) -> str:
    """Return a number of things: `0`, `999`, `1.2K`, `34M`."""
    return _scaled(value, 1000)


def size(value: float | None) -> str:
    """Return a number of bytes in powers of 1024: `0`, `1.2K`, `34M`."""
    return _scaled(value, 1024)


def _scaled(value: float | None, base: int) -> str:
    if value is None or value != value:
        return UNKNOWN
    value = max(value, 0.0)
    if value < 999.5:
        return f"{value:.0f}"
    for unit in _UNITS:
        value /= base
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 999.5:
            return f"{value:.0f}{unit}"
    return _TOO_LARGE


def rate(value: float | None) -> str:
    """Return a number of things per second, with one decimal while it is small: `0`, `0.3`, `12`, `1.2K`."""
    if value is None or not 0 < value < 9.95:
        return count(value)
    return f"{max(value, 0.1):.1f}"


def share(value: float | None) -> str:
    """Return a fraction as a percentage: `0%`, `12%`, `100%`."""
    if value is None or value != value:
        return UNKNOWN
    return f"{min(max(value, 0.0), 9.99) * 100:.0f}%"


def age(seconds: float | None) -> str:
    """Return a duration of seconds and more: `0s`, `5m12s`, `12m`, `3h05m`, `9d23h`, `99d`, `27y`."""
    if seconds is None or seconds != seconds:
        return UNKNOWN
    whole = int(min(max(seconds, 0.0), 9999 * _YEAR))
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < 10 * _MINUTE:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m"
    if whole < 10 * _HOUR:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    if whole < _DAY:
        return f"{whole // _HOUR}h"
    if whole < 10 * _DAY:
        return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"
    return f"{whole // _DAY}d" if whole < 10 * _YEAR else f"{whole // _YEAR}y"


def delay(seconds: float | None) -> str:
    """Return a duration that may be short: `0ms`, `0.4ms`, `12ms`, `1.2s`, and as `age` from 10 s on."""
    if seconds is None or seconds != seconds:
        return UNKNOWN
    if seconds <= 0:
        return "0ms"
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 9.95 else age(seconds)


def clip(text: str, width: int) -> str:
    """Return `text` in at most `width` characters; what is left out is marked by `~` in the middle.

    Both ends of an address, of a path and of an ID tell more than the middle.
    """
    if len(text) <= width:
        return text
    if width < 3:
        return text[: max(width, 0)]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}~{text[len(text) - tail :]}"


def words(text: str, width: int) -> str:
    """Return as many of the first words as fit into `width` characters, of a long word its begin."""
    if len(text) <= width:
        return text
    return text[: width + 1].rpartition(" ")[0].rstrip(" :,") or text[: max(width, 0)]


def bar(part: float | None, whole: float | None, width: int) -> str:
    """Return a bar of `width` characters, filled by `part` of `whole`; a part above zero fills at least one."""
    if not part or not whole:
        return EMPTY_CELL * width
    filled = max(round(min(part / whole, 1.0) * width), 1)
    return FULL_CELL * filled + EMPTY_CELL * (width - filled)


def quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> str:
    """Return the bucket of a histogram in which `part` of all values are reached: `<12ms`, or `>10s` for the last one.

    `counts` has one bucket more than `bounds`, of the values above the last bound.
    """
    wanted, reached = sum(counts) * part, 0
    if not bounds or wanted <= 0:
        return UNKNOWN
    for bound, number in zip(bounds, counts, strict=False):
        reached += number
        if reached >= wanted:
            return f"<{delay(bound)}"
    return f">{delay(bounds[-1])}"
