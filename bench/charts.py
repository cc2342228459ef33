"""Draw charts with matplotlib: stacked bars, and lines over a logarithmic axis, for light or dark pages.

Names and numbers go in, SVG comes out. What is compared with what does not belong here; see `plots.py`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 9.5
"""Inches."""
_ROW = 0.24
_SETTINGS = {
    # Text stays text, so that it can be searched for and read aloud.
    "svg.fonttype": "none",
    # The same numbers give the same file, otherwise each run would change all charts.
    "svg.hashsalt": "prefork",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one kind of page."""

    text: str
    dim: str
    ours: str
    floor: str
    theirs: str

    def of(self, kind: str) -> str:
        """Return the colour of `ours`, `theirs` or `floor`."""
        colour: str = getattr(self, kind)
        return colour


LIGHT = Theme(text="#1f2328", dim="#59636e", ours="#0969da", floor="#6e7781", theirs="#afb8c1")
DARK = Theme(text="#f0f6fc", dim="#9198a1", ours="#4493f8", floor="#8b949e", theirs="#515963")


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart: `parts` are stacked, the first one in the stronger colour."""

    label: str
    kind: str
    parts: tuple[float, ...]

    @property
    def total(self) -> float:
        """Return the sum of the parts."""
        return sum(self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a line chart; a value of None leaves a gap."""

    label: str
    kind: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """A bar chart with a scale of its own."""

    title: str
    bars: tuple[Bar, ...]


def bars(panels: Sequence[Panel], note: str, unit: str, theme: Theme) -> str:
    """Draw bar charts one below the other; each row ends with its value in `unit`."""
    heights = [_ROW * len(panel.bars) + 0.75 for panel in panels]

    def draw(figure: Any) -> None:
        every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _panel(axes, panel, unit, theme)

    return _svg(draw, sum(heights) + 0.3, note, theme)


def _panel(axes: Any, panel: Panel, unit: str, theme: Theme) -> None:
    axes.set_title(panel.title, loc="left", fontweight="bold")
    labels = [bar.label for bar in panel.bars]
    left = [0.0] * len(labels)
    for at in range(max((len(bar.parts) for bar in panel.bars), default=0)):
        widths = [bar.parts[at] if at < len(bar.parts) else 0.0 for bar in panel.bars]
        colours = [theme.of(bar.kind) for bar in panel.bars]
        alpha = 0.5 if at else 1.0
        # Unclipped, because the name of a clip path depends on the last bits of the layout, which differ between runs.
        axes.barh(labels, widths, left=left, color=colours, alpha=alpha, height=0.65, clip_on=False)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(left):
        axes.annotate(f"{readable(total)} {unit}", (total, row), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", left=False)


def lines(title: str, note: str, ticks: Sequence[int], data: Sequence[Line], unit: str, theme: Theme) -> str:
    """Draw lines over `ticks` at equal distances, on a logarithmic value axis; each line has its label at its end."""
    from matplotlib.ticker import LogLocator

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold")
        for line in data:
            values = [math.nan if value is None else value for value in line.values]
            style = {"ours": (2.5, "-"), "theirs": (1.5, "-"), "floor": (1.5, "--")}[line.kind]
            colour = theme.of(line.kind)
            axes.plot(range(len(ticks)), values, color=colour, linewidth=style[0], linestyle=style[1], clip_on=False)
        axes.set_yscale("log")
        axes.set_xticks(range(len(ticks)), [f"{tick:,}" for tick in ticks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{readable(value)} {unit}")
        axes.minorticks_off()
        _label_ends(axes, data, len(ticks) - 1, theme)

    return _svg(draw, 5.0, note, theme)


def _label_ends(axes: Any, data: Sequence[Line], last: int, theme: Theme) -> None:
    ends = sorted((line.values[-1], line.label) for line in data if line.values[-1])
    axes.figure.canvas.draw()
    wanted = [axes.transData.transform((last, value))[1] for value, _ in ends]
    for (value, label), height in zip(ends, apart(wanted, 16), strict=True):
        shift = (height - axes.transData.transform((last, value))[1]) * 72 / axes.figure.dpi
        arrow = {"arrowstyle": "-", "color": theme.dim, "linewidth": 0.5}
        axes.annotate(label, (last, value), (24, shift), textcoords="offset points", va="center", arrowprops=arrow)


def apart(wanted: Sequence[float], distance: float) -> list[float]:
    """Return rising positions near the rising `wanted` ones, at least `distance` apart, with the same average."""
    placed: list[float] = []
    for each in wanted:
        placed.append(max(each, placed[-1] + distance) if placed else each)
    back = sum(a - b for a, b in zip(placed, wanted, strict=True)) / len(placed) if placed else 0.0
    return [each - back for each in placed]


def readable(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2f}".removesuffix(".00")


def _svg(draw: Callable[[Any], None], height: float, note: str, theme: Theme) -> str:
    # Imported here: a run without charts needs no plotting library.
    import matplotlib
    from matplotlib.figure import Figure

    coloured = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text)
    settings: Any = {**_SETTINGS, **coloured, "axes.edgecolor": theme.dim}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.suptitle(note, x=0.01, ha="left", fontsize=9, color=theme.dim)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": note})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
