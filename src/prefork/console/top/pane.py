"""A widget of lines that repaints only what has changed.

Nothing here knows what the lines say. Texts are never markup, because peers have a hand in some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from .lines import EMPTY, Line, Tone

#: The terminal's own colours, so that the view is readable on light and dark ones alike.
STYLES: Mapping[Tone, Style] = {
    Tone.PLAIN: Style(),
    Tone.QUIET: Style(dim=True),
    Tone.STRONG: Style(bold=True),
    Tone.GOOD: Style(color="green"),
    Tone.WARNING: Style(color="yellow"),
    Tone.BAD: Style(color="red", bold=True),
    Tone.ACCENT: Style(color="cyan"),
    Tone.HEADING: Style(bold=True, underline=True),
    Tone.SORTED: Style(color="cyan", bold=True, underline=True),
    Tone.CURSOR: Style(reverse=True),
}


class Pane(Widget):
    """Shows lines, cut at its width. The owner calls `show` with as many as its height."""

    def __init__(self, id: str, lines: Sequence[Line] = ()) -> None:
        super().__init__(id=id, markup=False)
        self._lines = lines

    @property
    def lines(self) -> Sequence[Line]:
        return self._lines

    def show(self, lines: Sequence[Line]) -> None:
        """Replace the lines, and repaint the part of each that is different."""
        before, self._lines = self._lines, tuple(lines)
        for y in range(max(len(before), len(lines))):
            old = before[y] if y < len(before) else EMPTY
            new = lines[y] if y < len(lines) else EMPTY
            if old != new:
                first, last = _difference(old, new)
                self.refresh(Region(first, y, last - first, 1))

    def render_line(self, y: int) -> Strip:
        line = self._lines[y] if y < len(self._lines) else EMPTY
        strip = Strip([Segment(text, STYLES[tone]) for text, tone in line if text])
        return strip.adjust_cell_length(self.size.width)


def _difference(old: Line, new: Line) -> tuple[int, int]:
    """Return from where to where two different lines differ, in characters: lines have no wide ones."""
    cells = (_cells(old), _cells(new))
    length = max(map(len, cells))
    pad = (" ", Tone.PLAIN)
    one, two = (each + [pad] * (length - len(each)) for each in cells)
    different = [index for index in range(length) if one[index] != two[index]]
    return (different[0], different[-1] + 1) if different else (0, max(length, 1))


def _cells(line: Line) -> list[tuple[str, Tone]]:
    return [(char, tone) for text, tone in line for char in text]
