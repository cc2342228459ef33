"""A table that fits into a width and a height: columns, order, filter, cursor.

Pure. Widths do not depend on the values, so that no column moves while values change.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ...text import escape_ascii
from .figures import clip, words
from .lines import EMPTY, Line, Span, Tone, block, merge, quiet

R = TypeVar("R")
_first = operator.itemgetter(0)


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """One column: its title, its width in characters, and what it shows of a row.

    Where the table is too wide, columns go in the order of `rank`, the largest first; 0 stays always. Columns with
    `extra` take up to that many characters more where there is room. `letter` is the key that sorts by this column.
    """

    title: str
    width: int
    cell: Callable[[R], str | Span]
    key: Callable[[R], Any]
    letter: str = ""
    rank: int = 0
    extra: int = 0
    left: bool = False
    #: Whether a text that is too long loses its last words; otherwise it loses its middle.
    words: bool = False
    #: Whether the first look at this column wants its largest values.
    largest: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """By which column rows are sorted, and whether its natural direction is turned."""

    title: str
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Cursor:
    """The selected row, by its key, and where it was when it was seen last; `top` is the first row that is shown.

    Without a key it is the first row, whichever that is: the largest value stays in sight while rows change places.
    """

    key: str = ""
    index: int = 0
    top: int = 0


@dataclass(frozen=True, slots=True)
class Layout(Generic[R]):
    """The columns that fit, each with its width."""

    columns: tuple[tuple[Column[R], int], ...]
    gap: int
    #: What is left at the right of the last column, in characters.
    rest: int = 0


def lay_out(columns: Sequence[Column[R]], width: int) -> Layout[R]:
    """Return the columns that fit into `width` characters, and divide what is left among those that can grow."""
    shown = list(columns)
    while len(shown) > 1 and _width(shown, 1) > width and (last := max(shown, key=lambda each: each.rank)).rank:
        shown.remove(last)
    gap = 2 if _width(shown, 2) <= width else 1
    room = max(width - _width(shown, gap), 0)
    found = []
    for column in shown:
        more = min(column.extra, room)
        room -= more
        found.append((column, column.width + more))
    return Layout(tuple(found), gap, room)


def _width(columns: Sequence[Column[R]], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 1)


def arrange(rows: Sequence[R], columns: Sequence[Column[R]], order: Order) -> list[R]:
    """Return the rows in order. Unknown values are last in both directions, and equal ones keep their places."""
    column = next((each for each in columns if each.title == order.title), columns[0])
    keyed = [(column.key(row), row) for row in rows]
    known = sorted((each for each in keyed if each[0] is not None), key=_first, reverse=column.largest != order.turned)
    return [row for _, row in known] + [row for key, row in keyed if key is None]


def turn(order: Order, title: str) -> Order:
    """Return the order after a column was chosen: the same column again turns the direction."""
    return replace(order, turned=not order.turned) if order.title == title else Order(title)


def neighbour(columns: Sequence[Column[Any]], order: Order, step: int) -> Order:
    """Return the order by the column `step` places to the right."""
    titles = [column.title for column in columns]
    place = titles.index(order.title) if order.title in titles else 0
    return Order(titles[(place + step) % len(titles)])


def select(rows: Sequence[R], words: str, texts: Callable[[R], Sequence[tuple[str, str]]]) -> list[R]:
    """Return the rows that match every word of a filter.

    `texts` returns names and values of a row. A word `name=value` wants exactly that value of that name, and any other
    word a value that contains it.
    """
    wanted = words.lower().split()
    return [row for row in rows if _matches(wanted, texts(row))] if wanted else list(rows)


def _matches(wanted: Sequence[str], texts: Sequence[tuple[str, str]]) -> bool:
    found = [(name.lower(), value.lower()) for name, value in texts]
    return all(
        any(f"{name}={value}" == word for name, value in found) or any(word in value for _, value in found)
        for word in wanted
    )


def follow(cursor: Cursor, keys: Sequence[str], height: int) -> Cursor:
    """Return the cursor for new rows: on the same row if it is still there, otherwise at the same place."""
    if not keys or not cursor.key:
        return Cursor()
    index = keys.index(cursor.key) if cursor.key in keys else min(cursor.index, len(keys) - 1)
    height = max(height, 1)
    top = min(max(cursor.top, index - height + 1), index)
    return Cursor(keys[index], index, max(min(top, len(keys) - height), 0))


def move(cursor: Cursor, keys: Sequence[str], step: int) -> Cursor:
    """Return the cursor `step` rows further down, at most at either end."""
    if not keys:
        return Cursor()
    index = min(max(cursor.index + step, 0), len(keys) - 1)
    return replace(cursor, key=keys[index] if index else "", index=index)


def heading(layout: Layout[Any], order: Order) -> Line:
    """Return the titles of the columns; that of the sorted one is marked."""
    spans: list[Span] = []
    for column, width in layout.columns:
        tone = Tone.SORTED if column.title == order.title else Tone.HEADING
        spans += [(_align(column.title, width, column.left), tone), (" " * layout.gap, Tone.HEADING)]
    return merge([*spans[:-1], (" " * layout.rest, Tone.HEADING)])


def line_of(layout: Layout[R], row: R, selected: bool) -> Line:
    """Return one row, escaped, because peers have a hand in texts. A selected row has the tone of the cursor."""
    spans: list[Span] = []
    for column, width in layout.columns:
        cell = column.cell(row)
        text, tone = cell if isinstance(cell, tuple) else (cell, Tone.PLAIN)
        if not (text.isascii() and text.isprintable()):
            text = escape_ascii(text)
        text = words(text, width) if column.words else clip(text, width)
        spans += [(_align(text, width, column.left), tone), (" " * layout.gap, Tone.PLAIN)]
    spans[-1] = (" " * layout.rest, Tone.PLAIN)
    return merge((text, Tone.CURSOR if selected else tone) for text, tone in spans)


def _align(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def render(
    layout: Layout[R], rows: Sequence[R], order: Order, cursor: Cursor | None, height: int, empty: str
) -> list[Line]:
    """Return exactly `height` lines: the heading and the rows from the cursor's `top` on, or `empty` in words."""
    lines = [heading(layout, order)]
    if not rows:
        lines += [EMPTY, quiet(f"  {empty}")]
    top = cursor.top if cursor else 0
    for index, row in enumerate(rows[top : top + height - 1], top):
        lines.append(line_of(layout, row, cursor is not None and cursor.index == index))
    return block(lines, height)
