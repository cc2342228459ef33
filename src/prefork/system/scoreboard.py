"""The scoreboard: numbers that all processes of one server see, in shared memory, without a call or a lock.

One row for each worker, one writer for each field, so nothing is ever torn or lost; whoever reads may be a moment
behind. A dead worker's row stays as it was until another one takes it. No decisions live here, and no clock.
"""

from __future__ import annotations

import enum
import mmap

_WORD = 8


class Field(enum.IntEnum):
    """The columns; 64-bit signed numbers, written by the row's worker alone."""

    HEARTBEAT = 0
    """When the worker's loop last turned: nanoseconds of the monotonic clock, which all processes share; 0: never."""
    OPEN = 1
    """Connections that are open."""
    ACCEPTED = 2
    """Connections accepted since the worker started."""


class Row:
    """One worker's numbers."""

    __slots__ = ("_cells", "number")

    def __init__(self, number: int, cells: memoryview[int]) -> None:
        self.number = number
        self._cells = cells

    def __getitem__(self, field: Field) -> int:
        return self._cells[field]

    def __setitem__(self, field: Field, value: int) -> None:
        # One aligned store of a word: a reader sees the old value or the new one.
        self._cells[field] = value

    def opened(self) -> None:
        """A connection was accepted."""
        self._cells[Field.ACCEPTED] += 1
        self._cells[Field.OPEN] += 1

    def ended(self) -> None:
        """A connection has ended."""
        self._cells[Field.OPEN] -= 1

    def clear(self) -> None:
        """All zero, for a new worker."""
        for field in Field:
            self._cells[field] = 0


class Scoreboard:
    """`rows` rows, shared with every process that is forked from here on. Owned by the process that made it."""

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, max(rows * len(Field) * _WORD, mmap.PAGESIZE))
        self._cells = memoryview(self._memory).cast("q")
        self.rows = rows

    def row(self, number: int) -> Row:
        """The row with this number, 0 to rows-1."""
        if not 0 <= number < self.rows:
            raise IndexError(f"row {number} of {self.rows}")
        start = number * len(Field)
        return Row(number, self._cells[start : start + len(Field)])
