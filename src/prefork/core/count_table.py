"""Counts by key in a fixed piece of memory, which others may read while one writes: no lock, no growth.

Pure: an array of numbers is given from outside. A key has its place in one of two buckets of eight; a place whose count
is 0 is free for another key. With twice as many places as keys hardly any key ever finds both of its buckets full; with
one bucket for each, some do.
"""

from __future__ import annotations

from typing import Protocol

_WAYS = 8
_BUCKET = 2 * _WAYS
#: The second bucket is chosen by the bits from here on.
_SECOND = 31


class Cells(Protocol):
    """Numbers in memory."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


def buckets_for(keys: int) -> int:
    """The number of buckets of a table for this many keys: a power of two."""
    return 1 << max(1, (2 * keys - 1) // _WAYS).bit_length()


class CountTable:
    """A table of `buckets` (a power of two, at most 2^31) of eight keys each, at `start` in `cells`. Keys are positive
    integers of 62 bits that are spread evenly."""

    def __init__(self, cells: Cells, start: int, buckets: int) -> None:
        self._cells = cells
        self._start = start
        self._mask = buckets - 1

    @staticmethod
    def words(buckets: int) -> int:
        """How many numbers such a table takes."""
        return buckets * _BUCKET

    def get(self, key: int) -> int:
        """The count of `key`; 0 where a writer has put nonsense."""
        cells = self._cells
        for bucket in self._buckets(key):
            for place in range(bucket, bucket + _BUCKET, 2):
                if cells[place] == key:
                    count = cells[place + 1]
                    # Asked again: the place may have been given to another key in between.
                    if count > 0 and cells[place] == key:
                        return count
        return 0

    def add(self, key: int, more: int) -> bool:
        """Change the count of `key`; False, and nothing changed, where its buckets have no room. One writer only."""
        cells = self._cells
        best: list[int] = []
        for bucket in self._buckets(key):
            free = []
            for place in range(bucket, bucket + _BUCKET, 2):
                if cells[place + 1] == 0:
                    free.append(place)
                elif cells[place] == key:
                    cells[place + 1] += more
                    return True
            if len(free) > len(best):
                best = free
        if not best or more <= 0:
            return False
        cells[best[0]] = key
        cells[best[0] + 1] = more
        return True

    def _buckets(self, key: int) -> tuple[int, int]:
        first, second = key & self._mask, key >> _SECOND & self._mask
        if first == second:
            second ^= self._mask and 1
        return self._start + first * _BUCKET, self._start + second * _BUCKET
