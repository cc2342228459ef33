"""Counts by key in a fixed piece of shared memory: one process writes, others may read. No lock, no growth.

Pure: the memory comes from outside. The table is 2-choice and set-associative: a key may be in either of two buckets
of 8 entries, and an entry with count 0 is free. With twice as many entries as keys, hardly any key ever finds both of
its buckets full. With one bucket for each key, some do.
"""

from __future__ import annotations

from typing import Protocol

_ENTRIES = 8
_BUCKET_CELLS = 2 * _ENTRIES
#: The first bit of a key that chooses the second bucket.
_SECOND_SHIFT = 31


class Cells(Protocol):
    """Numbers in memory, such as a memoryview of 64-bit integers."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


def buckets_for(keys: int) -> int:
    """Return the number of buckets of a table for `keys` keys, a power of two."""
    return 1 << max(1, (2 * keys - 1) // _ENTRIES).bit_length()


class CountTable:
    """A table of `buckets` (a power of two, at most 2^31), from cell `start` on.

    Keys are positive integers of 62 bits, evenly distributed.
    """

    def __init__(self, cells: Cells, start: int, buckets: int) -> None:
        self._cells = cells
        self._start = start
        self._mask = buckets - 1

    @staticmethod
    def words(buckets: int) -> int:
        """Return the number of cells that a table of `buckets` takes."""
        return buckets * _BUCKET_CELLS

    def get(self, key: int) -> int:
        """Return the count of `key`, 0 if a writer has put nonsense into its entry."""
        cells = self._cells
        for bucket in self._buckets(key):
            for entry in range(bucket, bucket + _BUCKET_CELLS, 2):
                if cells[entry] == key:
                    count = cells[entry + 1]
                    # Read again, because the writer may have given the entry to another key in between.
                    if count > 0 and cells[entry] == key:
                        return count
        return 0

    def add(self, key: int, change: int) -> bool:
        """Change the count of `key`. Return False, and change nothing, if both of its buckets are full.

        Only one process may write.
        """
        cells = self._cells
        best: list[int] = []
        for bucket in self._buckets(key):
            free = []
            for entry in range(bucket, bucket + _BUCKET_CELLS, 2):
                if cells[entry + 1] == 0:
                    free.append(entry)
                elif cells[entry] == key:
                    cells[entry + 1] += change
                    return True
            if len(free) > len(best):
                best = free
        if not best or change <= 0:
            return False
        cells[best[0]] = key
        cells[best[0] + 1] = change
        return True

    def _buckets(self, key: int) -> tuple[int, int]:
        first, second = key & self._mask, key >> _SECOND_SHIFT & self._mask
        if first == second:
            second ^= self._mask and 1
        return self._start + first * _BUCKET_CELLS, self._start + second * _BUCKET_CELLS
