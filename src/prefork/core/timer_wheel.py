"""A timing wheel: deadlines of many keys in coarse buckets, so that one costs the same beside ten thousand others.

Pure: time is an argument, in seconds on any clock. Nothing here waits or calls back.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

#: Empty buckets that are kept in any case, because they are likely to be filled again.
MAX_EMPTY = 32


class TimerWheel(Generic[Key]):
    """One deadline for each key. It expires at the first `expired(now)` at or after it: never early, up to a tick late.

    A deadline that moves later leaves its key in the bucket it is in, and the key is moved on when that bucket is due.
    So a transfer that progresses a thousand times a second does not touch the buckets a thousand times. The buckets
    hold live keys only, so cleared deadlines cost nothing; a heap of cancelled timers would grow with them.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._deadlines: dict[Key, float] = {}
        self._bucket_of: dict[Key, int] = {}
        self._buckets: dict[int, set[Key]] = {}
        self._order: list[int] = []
        """A heap of the numbers of `_buckets`."""
        self._empty = 0
        """Buckets without a key."""

    def __len__(self) -> int:
        return len(self._deadlines)

    @property
    def buckets(self) -> int:
        """The number of buckets, empty ones included."""
        return len(self._buckets)

    def set(self, key: Key, deadline: float) -> None:
        """Give `key` this deadline; replaces the one that it had."""
        self._deadlines[key] = deadline
        bucket = self._bucket(deadline)
        current = self._bucket_of.get(key)
        if current is not None:
            if current <= bucket:
                return
            self._remove(key, current)
        self._insert(key, bucket)

    def clear(self, key: Key) -> None:
        """Remove the deadline of `key`, if it has one."""
        if self._deadlines.pop(key, None) is not None:
            self._remove(key, self._bucket_of.pop(key))

    def expired(self, now: float) -> list[Key]:
        """Remove and return the keys whose deadline has passed."""
        due: list[Key] = []
        while self._order and self._order[0] * self._tick <= now:
            number = heapq.heappop(self._order)
            members = self._buckets.pop(number)
            if not members:
                self._empty -= 1
            for key in members:
                deadline = self._deadlines[key]
                if deadline <= now:
                    due.append(key)
                    del self._deadlines[key], self._bucket_of[key]
                else:
                    self._insert(key, max(self._bucket(deadline), number + 1))
        return due

    def next_due(self) -> float | None:
        """Return when to call `expired` next; None while no deadline is set."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
            self._empty -= 1
        return self._order[0] * self._tick if self._order else None

    def _bucket(self, deadline: float) -> int:
        # The first bucket that is due at or after the deadline.
        return -int(-deadline // self._tick)

    def _insert(self, key: Key, bucket: int) -> None:
        self._bucket_of[key] = bucket
        members = self._buckets.get(bucket)
        if members is None:
            self._buckets[bucket] = {key}
            heapq.heappush(self._order, bucket)
        else:
            if not members:
                self._empty -= 1
            members.add(key)

    def _remove(self, key: Key, bucket: int) -> None:
        # An empty bucket stays for a while, because removing it from the heap is expensive.
        members = self._buckets[bucket]
        members.discard(key)
        if not members:
            self._empty += 1
            if self._empty > MAX_EMPTY and self._empty > len(self._buckets) // 2:
                self._drop_empty_buckets()

    def _drop_empty_buckets(self) -> None:
        # At least half are empty when this runs, so its cost is constant for each key that was removed.
        self._buckets = {number: members for number, members in self._buckets.items() if members}
        self._order = list(self._buckets)
        heapq.heapify(self._order)
        self._empty = 0
