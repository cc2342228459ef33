"""Lines of text with a tone for each part: what all pages are made of.

Pure. What a tone looks like is decided where lines are shown.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable


class Tone(enum.Enum):
    """What a text is, not how it looks."""

    PLAIN = "plain"
    QUIET = "quiet"
    STRONG = "strong"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    ACCENT = "accent"
    HEADING = "heading"
    SORTED = "sorted"
    CURSOR = "cursor"


Span = tuple[str, Tone]
Line = tuple[Span, ...]

EMPTY: Line = ()


def plain(text: str) -> Line:
    return ((text, Tone.PLAIN),)


def quiet(text: str) -> Line:
    return ((text, Tone.QUIET),)


def text_of(line: Line) -> str:
    """Return a line as plain text, without spaces at its end."""
    return "".join(text for text, _ in line).rstrip()


def width_of(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def fit(line: Line, width: int) -> Line:
    """Return a line cut to at most `width` characters."""
    kept: list[Span] = []
    for text, tone in line:
        if width <= 0:
            break
        kept.append((text[:width], tone))
        width -= len(text)
    return tuple(kept)


def spread(left: Line, right: Line, width: int) -> Line:
    """Return one line with `left` at its begin and `right` at its end. Where both do not fit, `left` is cut."""
    right = fit(right, width)
    left = fit(left, max(width - width_of(right) - 2, 0)) if right else fit(left, width)
    room = width - width_of(left) - width_of(right)
    return (*left, (" " * room, Tone.PLAIN), *right) if right else left


def join(parts: Iterable[Line], gap: str = "  ") -> Line:
    """Return the parts that are not empty in one line, with `gap` between them."""
    joined: list[Span] = []
    for part in parts:
        if part and text_of(part):
            joined += [(gap, Tone.PLAIN), *part] if joined else part
    return tuple(joined)


def wrap(parts: Iterable[Line], width: int, gap: str = "  ") -> list[Line]:
    """Return the parts in as few lines as hold them; no part is divided."""
    lines: list[Line] = []
    for part in filter(None, parts):
        if lines and width_of(lines[-1]) + len(gap) + width_of(part) <= width:
            lines[-1] = join((lines[-1], part), gap)
        else:
            lines.append(fit(part, width))
    return lines


def merge(spans: Iterable[Span]) -> Line:
    """Return a line in which neighbours of one tone are one span."""
    merged: list[Span] = []
    for text, tone in spans:
        if merged and merged[-1][1] is tone:
            merged[-1] = (merged[-1][0] + text, tone)
        else:
            merged.append((text, tone))
    return tuple(merged)


def block(lines: list[Line], height: int) -> list[Line]:
    """Return exactly `height` lines: the first ones, or all of them and empty ones."""
    return [*lines[:height], *[EMPTY] * (height - len(lines))]
