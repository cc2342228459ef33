"""The scoreboard: numbers that all processes of one server see, in shared memory, without a call or a lock.

A part for each worker and one for the supervisor; each part has one writer, so nothing is ever torn or lost, and a
reader may be a moment behind. A worker can write its own part alone (`shared_memory.py`), and is not believed beyond
what can be true: what a reader gets is within bounds. No decisions live here, and no clock.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable

from ..core.count_table import Cells, CountTable, buckets_for
from .descriptors import MOST
from .shared_memory import PAGE_WORDS, SharedMemory, whole_pages

#: Peers that a worker counts at the most; of more it refuses connections, if it has to count them.
MAX_PEERS = 2**16
#: Larger than any count of connections that a worker can have been given, and far from the end of a word.
MAX_SHARE = 2**48


class WorkerStat(enum.IntEnum):
    """The columns of a worker's part; 64-bit signed numbers."""

    HEARTBEAT = 0
    """When the worker's loop last turned: nanoseconds of the monotonic clock, which all processes share; 0: never."""
    OPEN = 1
    """Connections that are open, and the one that is about to be accepted."""
    SHARE = 2
    """Connections that it was given, in step with its siblings (`core/fairness.py`)."""
    ACCEPTED = 3
    """Connections accepted since the worker started."""
    REFUSED = 4
    """Of these, those that were closed at once, at a limit."""
    STOPPED = 5
    """1 once it has stopped accepting for good."""


_OPEN, _SHARE, _ACCEPTED, _REFUSED = (
    int(field) for field in (WorkerStat.OPEN, WorkerStat.SHARE, WorkerStat.ACCEPTED, WorkerStat.REFUSED)
)


class FleetSetting(enum.IntEnum):
    """What the supervisor writes, for all workers to read."""

    SLOTS = 0
    """How many workers are wanted."""
    STOPPING = 1
    """1 when nobody will accept after those that do now."""
    MAX_CONNECTIONS = 2
    MAX_PER_PEER = 3
    """Open connections of all workers, and of one peer; 0: no limit."""
    ACCEPT_RATE = 4
    """Thousandths of connections a second; 0: no limit."""
    VERSION = 5
    """Changes whenever the list of workers does."""
    COUNT = 6
    """How many workers accept; their rows follow, and then those that only have connections."""
    OTHERS = 7
    SHARED = 8
    """1 when another supervisor has the listening sockets, too: they must not be shut down."""


_LIST_AT = 16


class Row:
    """One worker's numbers, `number` from 1; number 0 is the supervisor's."""

    __slots__ = ("_buckets", "_cells", "number", "start")

    def __init__(self, number: int, cells: Cells, start: int, buckets: int) -> None:
        self.number = number
        self.start = start
        self._cells = cells
        self._buckets = buckets

    def __getitem__(self, field: WorkerStat | FleetSetting) -> int:
        return self._cells[self.start + field]

    def __setitem__(self, field: WorkerStat | FleetSetting, value: int) -> None:
        # One aligned store of a word: a reader sees the old value or the new one.
        self._cells[self.start + field] = value

    @property
    def open(self) -> int:
        """Connections that are open, as far as that can be true: 0 for more than a process can have."""
        return _within(self._cells[self.start + _OPEN], MOST)

    def reserve(self, more: int) -> None:
        """Count a connection that is about to be accepted, or no more."""
        self._cells[self.start + _OPEN] += more

    def accepted(self, share: int) -> None:
        """It was."""
        self._cells[self.start + _ACCEPTED] += 1
        self._cells[self.start + _SHARE] = share

    def refused(self) -> None:
        """It was closed at once."""
        self._cells[self.start + _REFUSED] += 1

    def peers(self) -> CountTable:
        """Its open connections, by peer."""
        return CountTable(self._cells, self.start + PAGE_WORDS, self._buckets)


class Scoreboard:
    """Parts for the supervisor and `rows` workers, shared with every process that is forked from here on.

    The process that made it writes all of it. A child calls `enter` before anything of the service runs in it. Each
    worker can count so many `peers`. Raises OSError where there is no memory for it.
    """

    def __init__(self, rows: int, peers: int = 0) -> None:
        self.rows = rows
        self.secret = os.urandom(16)
        """Part of the keys of peers: without it a peer could choose addresses that fall into one bucket."""
        self._buckets = buckets_for(min(peers, MAX_PEERS))
        words = PAGE_WORDS + whole_pages(CountTable.words(self._buckets))
        self._memory = SharedMemory([whole_pages(_LIST_AT + rows), *[words] * rows])
        self.notices = self.row(0)

    def row(self, number: int) -> Row:
        """The part with this number: 1 to `rows` for workers, 0 for the supervisor."""
        if not 0 <= number <= self.rows:
            raise IndexError(f"row {number} of {self.rows}")
        return Row(number, self._memory.cells, self._memory.start(number), self._buckets)

    def clear(self, number: int) -> Row:
        """The same, all zero, for a new worker."""
        self._memory.clear(number)
        return self.row(number)

    def loads(self, rows: Iterable[Row]) -> dict[int, tuple[int, int]]:
        """OPEN and SHARE of each, by its number. Here, as it is most of what an accept costs with many workers."""
        cells = self._memory.cells
        found = {}
        for row in rows:
            open, share = cells[row.start + _OPEN], cells[row.start + _SHARE]
            if not (0 <= open <= MOST and 0 <= share <= MAX_SHARE):
                open, share = row.open, 0
            found[row.number] = (open, share)
        return found

    def publish(self, accepting: Iterable[int], others: Iterable[int]) -> None:
        """Tell all workers the numbers of the rows of those that accept, and of those that only have connections."""
        lists = [list(accepting), list(others)]
        for position, number in enumerate([*lists[0], *lists[1]][: self.rows]):
            self._memory.cells[_LIST_AT + position] = number
        self.notices[FleetSetting.COUNT] = len(lists[0])
        self.notices[FleetSetting.OTHERS] = len(lists[1])
        self.notices[FleetSetting.VERSION] += 1

    def published(self) -> tuple[list[int], list[int]]:
        """The same, read: while it is being written, a moment's mixture of the old and the new."""
        count = min(max(0, self.notices[FleetSetting.COUNT]), self.rows)
        total = min(count + max(0, self.notices[FleetSetting.OTHERS]), self.rows)
        numbers = [self._memory.cells[_LIST_AT + position] for position in range(total)]
        return numbers[:count], numbers[count:]

    def all_stopped(self, own: Row) -> bool:
        """Whether all workers but the one with the row `own` have stopped accepting."""
        accepting, others = self.published()
        return all(self.row(number)[WorkerStat.STOPPED] for number in (*accepting, *others) if number != own.number)

    def enter(self, number: int) -> Row:
        """In a worker: keep the right to write its own part, and lose it for the others, for good. Its own row.

        A row that was made before must not be touched afterwards: its memory is gone.
        """
        own = self._memory.enter(number)
        self.notices = self.row(0)
        return Row(number, own, 0, self._buckets)

    def close(self) -> None:
        """Give the memory back, in the process that made it. Nothing of it must be touched afterwards."""
        self._memory.close()


def fence() -> None:
    """What we have written is seen by all processors before we read on. A processor may let a read overtake a write;
    the kernel's scheduler, which this call goes through, does not (smp_mb__after_spinlock)."""
    os.sched_yield()


def _within(value: int, most: int) -> int:
    return value if 0 <= value <= most else 0
