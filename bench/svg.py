"""Charts as SVG, written by hand: stacked bars, and lines over a logarithmic axis. Readable on light and dark pages.

Knows nothing of benchmarks: names and numbers in, text out. Colours follow the reader's `prefers-color-scheme`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 760
_SVG = "xmlns='http://www.w3.org/2000/svg' role='img'"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_STYLE = """
text{fill:#1f2328}.dim{fill:#59636e}.title{font-weight:600}
.axis{stroke:#d1d9e0;stroke-width:1}
.ours{fill:#0969da}.floor{fill:#8c959f}.theirs{fill:#afb8c1}
.ours.second{fill:#80b4ec}.floor.second{fill:#c4cad0}.theirs.second{fill:#d6dbe0}
.line{fill:none;stroke-width:1.5}.line.ours{fill:none;stroke:#0969da;stroke-width:2.5}
.line.theirs{fill:none;stroke:#afb8c1}.line.floor{fill:none;stroke:#8c959f;stroke-dasharray:4 3}
@media (prefers-color-scheme: dark){
text{fill:#f0f6fc}.dim{fill:#9198a1}.axis{stroke:#3d444d}
.ours{fill:#4493f8}.floor{fill:#656c76}.theirs{fill:#515963}
.ours.second{fill:#264f80}.floor.second{fill:#3d444d}.theirs.second{fill:#343a42}
.line.ours{stroke:#4493f8}.line.theirs{stroke:#515963}.line.floor{stroke:#656c76}
}
"""
ROW, BAR = 20, 13
_LABELS, _VALUES = 245, 100
_HEAD = 30


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart: `parts` are stacked, the first one in the stronger colour."""

    label: str
    kind: str
    """`ours`, `theirs` or `floor`: its colour."""
    parts: tuple[float, ...]

    @property
    def total(self) -> float:
        """Where it ends."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line chart; a value of None leaves a gap."""

    label: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A bar chart with its own scale."""

    title: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        """Pixels."""
        return 30 + ROW * len(self.bars) + 14


def bars(panels: Sequence[Panel], note: str, description: str, unit: str) -> str:
    """Bar charts, one below the other, under a `note`; each row ends with its value, in `unit`."""
    body, top = [_text(12, 20, note, "dim")], _HEAD
    for panel in panels:
        body += _panel(panel, top, unit)
        top += panel.height
    return _document(top, description, body)


def _panel(panel: Panel, top: int, unit: str) -> list[str]:
    longest = max((bar.total for bar in panel.bars), default=0) or 1
    scale = (WIDTH - _LABELS - _VALUES) / longest
    body = [_text(12, top + 16, panel.title, "title", size=14)]
    for number, bar in enumerate(panel.bars):
        y = top + 30 + number * ROW
        body.append(_text(_LABELS - 8, y + BAR - 2, bar.label, anchor="end"))
        x = float(_LABELS)
        for at, part in enumerate(bar.parts):
            kind = f"{bar.kind} second" if at else bar.kind
            body.append(f"<rect class='{kind}' x='{x:.1f}' y='{y}' width='{part * scale:.1f}' height='{BAR}'/>")
            x += part * scale
        body.append(_text(x + 6, y + BAR - 2, f"{readable(bar.total)} {unit}", "dim"))
    return body


def lines(title: str, note: str, ticks: Sequence[int], data: Sequence[Line], description: str, unit: str) -> str:
    """Lines over `ticks`, which stand at equal distances; the value axis is logarithmic. Labels at the right end."""
    values = [value for line in data for value in line.values if value]
    low, high = math.log10(min(values)), math.log10(max(values))
    top, height, left, right = 64, 330, 64, WIDTH - 265

    def x_of(at: int) -> float:
        return left + (right - left) * at / max(1, len(ticks) - 1)

    def y_of(value: float) -> float:
        return top + height * (1 - (math.log10(value) - low) / ((high - low) or 1))

    body = [_text(12, 20, note, "dim"), _text(12, 42, title, "title", size=14)]
    for mark in _marks(10**low, 10**high):
        body.append(_segment("axis", left, y_of(mark), right, y_of(mark)))
        body.append(_text(left - 8, y_of(mark) + 4, f"{readable(mark)} {unit}", "dim", anchor="end"))
    for at, tick in enumerate(ticks):
        body.append(_text(x_of(at), top + height + 22, f"{tick:,}", "dim", anchor="middle"))
    for line in data:
        points = " ".join(f"{x_of(at):.1f},{y_of(v):.1f}" for at, v in enumerate(line.values) if v)
        body.append(f"<polyline class='line {line.kind}' points='{points}'/>")
    ends = sorted((y_of(line.values[-1]), line.label) for line in data if line.values[-1])
    for (end, label), y in zip(ends, apart([end for end, _ in ends], 15), strict=True):
        body.append(_segment("axis", right + 3, end, right + 22, y))
        body.append(_text(right + 26, y + 4, label))
    return _document(top + height + 36, description, body)


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Rising positions near the rising ones that are `wanted`, none closer than `distance` to the one before: moved on
    where they would overlap, then all back by what that was on average."""
    placed: list[float] = []
    for each in wanted:
        placed.append(max(each, placed[-1] + distance) if placed else each)
    back = sum(a - b for a, b in zip(placed, wanted, strict=True)) / len(placed) if placed else 0.0
    return [each - back for each in placed]


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between the two."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def readable(value: float) -> str:
    """A number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2f}".removesuffix(".00")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", size: int = 12) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}'"
        f"{f' class={kind!r}' if kind else ''}>{escape(text)}</text>"
    )


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line class='{kind}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"


def _document(height: int, description: str, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f"<svg {_SVG} viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' {_FONT}>",
            f"<title>{escape(description)}</title>",
            f"<style>{_STYLE}</style>",
            *body,
            "</svg>\n",
        ]
    )
