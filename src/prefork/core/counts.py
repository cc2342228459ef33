"""Counts by key in a fixed piece of memory, which others may read while one writes: no lock, no growth.

Pure: an array of numbers is given from outside. A key has its place in a bucket of eight; a place whose count is 0 is
free for another key. So a reader never sees a wrong count under a key, at most one that is a moment old.
"""

from __future__ import annotations

from typing import Protocol

_WAYS = 8
_BUCKET = 2 * _WAYS


class Cells(Protocol):
    """Numbers in memory."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


class Counts:
    """A table of `buckets` (a power of two) of eight keys each, at `start` in `cells`. Keys are positive integers that
    are spread evenly."""

    def __init__(self, cells: Cells, start: int, buckets: int) -> None:
        self._cells = cells
        self._start = start
        self._mask = buckets - 1

    @staticmethod
    def words(buckets: int) -> int:
        """How many numbers such a table takes."""
        return buckets * _BUCKET

    def get(self, key: int) -> int:
        """The count of `key`."""
        cells = self._cells
        at = self._start + (key & self._mask) * _BUCKET
        for place in range(at, at + _BUCKET, 2):
            if cells[place] == key:
                return cells[place + 1]
        return 0

    def add(self, key: int, more: int) -> bool:
        """Change the count of `key`; False, and nothing changed, where its bucket has no room. One writer only."""
        cells = self._cells
        at = self._start + (key & self._mask) * _BUCKET
        free = -1
        for place in range(at, at + _BUCKET, 2):
            if cells[place] == key:
                cells[place + 1] += more
                return True
            if free < 0 and cells[place + 1] == 0:
                free = place
        if free < 0 or more <= 0:
            return False
        cells[free] = key
        cells[free + 1] = more
        return True

    def clear(self) -> None:
        """All zero. Touches what is not zero alone: memory that was never used stays unused."""
        for place in range(self._start + 1, self._start + (self._mask + 1) * _BUCKET, 2):
            if self._cells[place]:
                self._cells[place] = 0
