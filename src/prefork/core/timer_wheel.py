"""Deadlines of many things at once, kept in coarse buckets: setting, moving and clearing one costs the same with ten
thousand others there.

Pure: time is an argument, in seconds on whatever clock the owner uses. Nothing here waits or calls anybody.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

#: So many empty buckets are kept at least.
MAX_EMPTY = 32


class TimerWheel(Generic[Key]):
    """For each key one deadline. A key expires at the first `expired(now)` with `now` at or after it, at the latest
    `grain` seconds late, and never early.

    A deadline that moves later leaves its key in the bucket it has and is looked at again when that bucket comes up: a
    transfer that makes progress a thousand times a second does not touch the buckets a thousand times. The buckets hold
    live keys only, so cleared deadlines cost nothing (a heap of cancelled timers grows with what is long gone).
    """

    def __init__(self, grain: float) -> None:
        self._grain = grain
        self._deadlines: dict[Key, float] = {}
        self._bucket_of: dict[Key, int] = {}
        self._buckets: dict[int, set[Key]] = {}
        self._order: list[int] = []
        self._empty = 0
        """Buckets that nothing is in."""

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: Key, deadline: float) -> None:
        """Give `key` this deadline in place of the one it may have."""
        self._deadlines[key] = deadline
        bucket = self._bucket(deadline)
        current = self._bucket_of.get(key)
        if current is not None:
            if current <= bucket:
                return
            self._leave(key, current)
        self._enter(key, bucket)

    def clear(self, key: Key) -> None:
        """Take the deadline of `key` away, if it has one."""
        if self._deadlines.pop(key, None) is not None:
            self._leave(key, self._bucket_of.pop(key))

    def expired(self, now: float) -> list[Key]:
        """Remove and return the keys whose deadline has passed."""
        due: list[Key] = []
        while self._order and self._order[0] * self._grain <= now:
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
                    self._enter(key, max(self._bucket(deadline), number + 1))
        return due

    def next_due(self) -> float | None:
        """When to call `expired` next; None while nothing is set."""
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
            self._empty -= 1
        return self._order[0] * self._grain if self._order else None

    def _bucket(self, deadline: float) -> int:
        # The first bucket that comes up at or after the deadline: late by up to a grain, never early.
        return -int(-deadline // self._grain)

    def _enter(self, key: Key, bucket: int) -> None:
        self._bucket_of[key] = bucket
        members = self._buckets.get(bucket)
        if members is None:
            self._buckets[bucket] = {key}
            heapq.heappush(self._order, bucket)
        else:
            if not members:
                self._empty -= 1
            members.add(key)

    def _leave(self, key: Key, bucket: int) -> None:
        # An empty bucket stays for a while: it is likely to be filled again, and to take it out of the order is dear.
        members = self._buckets[bucket]
        members.discard(key)
        if not members:
            self._empty += 1
            if self._empty > MAX_EMPTY and self._empty > len(self._buckets) // 2:
                self._sweep()

    def _sweep(self) -> None:
        """Drop the empty buckets: as many have been left as this looks at, so it costs each of them a moment."""
        self._buckets = {number: members for number, members in self._buckets.items() if members}
        self._order = list(self._buckets)
        heapq.heapify(self._order)
        self._empty = 0
