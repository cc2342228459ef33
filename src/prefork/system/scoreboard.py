"""The scoreboard: numbers in shared memory that all processes of one server read, without a call or a lock.

There is a part for the supervisor and one for each worker. Each part has one writer, so no update is lost or read in
halves, and a reader may be slightly behind. A worker can write only its own part (`shared_memory.py`). Because a worker
may write nonsense, readers get values within bounds. No decisions live here, and no clock.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

from ..core import account
from ..core.account import Account, Counters
from ..core.count_table import Cells, CountTable, buckets_for
from ..core.service_metrics import REGION_WORDS, Writer
from .descriptors import MAX_DESCRIPTORS
from .shared_memory import PAGE_WORDS, WORD, SharedMemory, whole_pages

#: Peers that one worker can count. If it has to count more, it refuses their connections.
MAX_PEERS = 2**16
#: Larger than any count of connections that a worker can have been assigned, and far below 2^63.
MAX_ASSIGNED = 2**48


#: The word of a worker's part at which its account begins.
ACCOUNT_AT = 32


class Pause(enum.IntEnum):
    """Why a worker does not accept now."""

    NONE = 0
    MAX_CONNECTIONS = 1
    DESCRIPTORS = 2
    HANDSHAKES = 3
    ACCEPT_RATE = 4
    RESOURCES = 5
    """accept(2) has failed for lack of a resource."""
    SUSPENDED = 6


class WorkerStat(enum.IntEnum):
    """The columns of a worker's part; signed 64-bit numbers."""

    HEARTBEAT = 0
    """When the worker's loop last ran, in nanoseconds of the monotonic clock, which all processes share; 0: never."""
    OPEN = 1
    """Connections that are open, and the one that is about to be accepted."""
    ASSIGNED = 2
    """Virtual count of connections assigned to the worker, in step with its siblings (`core/dispatch.py`)."""
    ACCEPTED = ACCOUNT_AT + account.ACCEPTED
    """Connections accepted since the worker started: part of the account."""
    STOPPED = 5
    """1 once the worker has stopped accepting for good."""
    GENERATION = 6
    """The generation of the worker, which passes connections on within it only."""
    FULL = 7
    """1 while the worker has no descriptors for more connections: siblings pass it none."""
    PAUSED = 8
    """Why it does not accept now, as a `Pause`. This and what follows is written with each heartbeat."""
    UNSENT = 9
    """Bytes that the kernel has not taken yet."""
    HANDSHAKES_WAITING = 10
    """TLS handshakes that wait for the CPU."""
    LAG_P50 = 11
    """How late the loop called a timer in the last minute, in nanoseconds."""
    LAG_P99 = 12
    LAG_MAX = 13


_OPEN, _ASSIGNED, _ACCEPTED = (int(stat) for stat in (WorkerStat.OPEN, WorkerStat.ASSIGNED, WorkerStat.ACCEPTED))


class FleetSetting(enum.IntEnum):
    """The columns of the supervisor's part, which all workers read."""

    SLOTS = 0
    """The number of workers that is wanted."""
    STOPPING = 1
    """1 if no further worker will accept after those that accept now."""
    MAX_CONNECTIONS = 2
    """Open connections of all workers; 0: no limit."""
    MAX_PER_PEER = 3
    """Open connections of one peer; 0: no limit."""
    ACCEPT_RATE = 4
    """Thousandths of a connection per second; 0: no limit."""
    VERSION = 5
    """Changes whenever the list of workers does."""
    ACCEPTING = 6
    """The number of workers that accept. Their rows come first in the list of workers."""
    NOT_ACCEPTING = 7
    """The number of all others: they start, drain, hang or are being killed. Their rows follow."""
    LISTENERS_SHARED = 8
    """1 if another supervisor also has the listening sockets: they must not be shut down."""
    SUSPENDED = 9
    """1 while no worker is to accept: clients wait in the accept queues."""


#: The word of the supervisor's part at which the list of workers begins.
_LIST_AT = 16
#: A drain deadline in the words after the list, one for each row in nanoseconds; 0: none was set.
_NEVER = -1
#: Each word of the list is the number of a row, and above it the slot of its worker.
_SLOT_SHIFT = 32
_ROW_MASK = (1 << _SLOT_SHIFT) - 1

Column = TypeVar("Column", WorkerStat, FleetSetting)


class _Part(Generic[Column]):
    """Numbers in shared memory, by column."""

    __slots__ = ("_cells", "start")

    def __init__(self, cells: Cells, start: int) -> None:
        self._cells = cells
        self.start = start

    def __getitem__(self, column: Column) -> int:
        return self._cells[self.start + column]

    def __setitem__(self, column: Column, value: int) -> None:
        # One aligned store of a word: a reader sees the old value or the new one.
        self._cells[self.start + column] = value


class Row(_Part[WorkerStat]):
    """One worker's part; `number` counts from 1."""

    __slots__ = ("_buckets", "_counters", "number")

    def __init__(self, number: int, cells: Cells, start: int, buckets: int) -> None:
        super().__init__(cells, start)
        self.number = number
        self._buckets = buckets
        self._counters = Counters()

    @property
    def open(self) -> int:
        """The number of open connections; 0 if the worker claims more than a process can have."""
        count = self._cells[self.start + _OPEN]
        return count if 0 <= count <= MAX_DESCRIPTORS else 0

    def reserve(self, more: int) -> None:
        """Add to the number of open connections: 1 before an accept, -1 after a close."""
        self._cells[self.start + _OPEN] += more

    def accepted(self, assigned: int) -> None:
        """Count an accepted connection, and set the virtual count to `assigned`."""
        self._cells[self.start + _ACCEPTED] += 1
        self._cells[self.start + _ASSIGNED] = assigned

    def account(self) -> Account:
        """Return the worker's account, to write to it."""
        return Account(self._cells, self.start + ACCOUNT_AT)

    def counters(self) -> Counters:
        """Return a copy of the worker's account, of which no count is lower than in the last one."""
        self._counters = self._counters.raised_to(account.read(self._cells, self.start + ACCOUNT_AT))
        return self._counters

    @property
    def pause(self) -> Pause:
        """Why the worker does not accept now; NONE if it claims something else."""
        try:
            return Pause(self[WorkerStat.PAUSED])
        except ValueError:
            return Pause.NONE

    def _service_at(self) -> int:
        return self.start + PAGE_WORDS + whole_pages(CountTable.words(self._buckets))

    def service_metrics(self) -> Writer:
        """Return what writes the service's own metrics, into an empty region."""
        start = self._service_at()
        memory = memoryview(cast(Any, self._cells)).cast("B")[start * WORD : (start + REGION_WORDS) * WORD]
        return Writer(memory.cast("q"), memory.cast("d"))

    def read_service_metrics(self) -> bytes:
        """Return a copy of the region of the service's own metrics, as far as it is in use."""
        start = self._service_at()
        used = min(max(0, self._cells[start]), REGION_WORDS)
        return bytes(memoryview(cast(Any, self._cells)).cast("B")[start * WORD : (start + used) * WORD])

    def peers(self) -> CountTable:
        """Return the table of the worker's open connections by peer."""
        return CountTable(self._cells, self.start + PAGE_WORDS, self._buckets)


class Scoreboard:
    """Parts for the supervisor and `rows` workers, shared with every process that is forked after construction.

    The process that made it can write all of it. A child calls `become_writer` before any code of the service runs.
    Each worker can count up to `peers` peers. Raises OSError if there is no memory for it.
    """

    def __init__(self, rows: int, peers: int = 0) -> None:
        self.rows = rows
        self.secret = os.urandom(16)
        """Part of the keys of peers. Otherwise a peer could choose addresses that fall into one bucket."""
        self._buckets = buckets_for(min(peers, MAX_PEERS))
        words = PAGE_WORDS + whole_pages(CountTable.words(self._buckets)) + REGION_WORDS
        self._memory = SharedMemory([whole_pages(_LIST_AT + 2 * rows), *[words] * rows])
        self.settings: _Part[FleetSetting] = _Part(self._memory.cells, 0)

    def row(self, number: int) -> Row:
        """Return the part of one worker; `number` is 1 to `rows`."""
        if not 1 <= number <= self.rows:
            raise IndexError(f"row {number} of {self.rows}")
        return Row(number, self._memory.cells, self._memory.start(number), self._buckets)

    def clear(self, number: int) -> Row:
        """Set a worker's part to zero for a new worker, and return it."""
        self._memory.clear(number)
        self._memory.cells[_LIST_AT + self.rows + number - 1] = 0
        return self.row(number)

    def loads(self, rows: Iterable[Row]) -> dict[int, tuple[int, int]]:
        """Return (OPEN, ASSIGNED) of each row by its number, in one loop: with many workers it dominates an accept."""
        cells = self._memory.cells
        found = {}
        for row in rows:
            open, assigned = cells[row.start + _OPEN], cells[row.start + _ASSIGNED]
            if not (0 <= open <= MAX_DESCRIPTORS and 0 <= assigned <= MAX_ASSIGNED):
                open, assigned = row.open, 0
            found[row.number] = (open, assigned)
        return found

    def publish(self, accepting: Mapping[int, int], not_accepting: Mapping[int, int]) -> None:
        """Publish the rows of the workers that accept, and of all others, which may have open connections.

        Each is the slot of the worker, by the number of its row.
        """
        lists = [list(accepting.items()), list(not_accepting.items())]
        for position, (number, slot) in enumerate([*lists[0], *lists[1]][: self.rows]):
            self._memory.cells[_LIST_AT + position] = number | slot << _SLOT_SHIFT
        self.settings[FleetSetting.ACCEPTING] = len(lists[0])
        self.settings[FleetSetting.NOT_ACCEPTING] = len(lists[1])
        self.settings[FleetSetting.VERSION] += 1

    def published(self) -> tuple[list[int], list[int]]:
        """Return the rows of workers that accept, and of all others; during a `publish` a mixture of old and new."""
        count = min(max(0, self.settings[FleetSetting.ACCEPTING]), self.rows)
        total = min(count + max(0, self.settings[FleetSetting.NOT_ACCEPTING]), self.rows)
        numbers = [self._memory.cells[_LIST_AT + position] & _ROW_MASK for position in range(total)]
        return numbers[:count], numbers[count:]

    def slots(self) -> dict[int, int]:
        """Return the slots of the workers that accept, by the number of the row."""
        count = min(max(0, self.settings[FleetSetting.ACCEPTING]), self.rows)
        words = [self._memory.cells[_LIST_AT + position] for position in range(count)]
        return {word & _ROW_MASK: word >> _SLOT_SHIFT for word in words}

    def set_drain_deadline(self, number: int, until: float | None) -> None:
        """Tell the worker with this row until when it may drain, on the monotonic clock; None: without limit."""
        self._memory.cells[_LIST_AT + self.rows + number - 1] = _NEVER if until is None else max(1, round(until * 1e9))

    def drain_deadline(self, number: int) -> float | None:
        """Return until when the worker with this row may drain: `inf` is without limit; None: it was not told to."""
        word = self._memory.cells[_LIST_AT + self.rows + number - 1]
        return math.inf if word == _NEVER else word / 1e9 or None

    def all_stopped(self, own: Row) -> bool:
        """Return whether all workers except the one with the row `own` have stopped accepting."""
        accepting, not_accepting = self.published()
        others = [number for number in (*accepting, *not_accepting) if number != own.number]
        return all(self.row(number)[WorkerStat.STOPPED] for number in others)

    def become_writer(self, number: int) -> Row:
        """Keep only the right to write this worker's own part, for good, and return its row. Call it in the worker.

        Rows that were made before are unmapped: to touch one afterwards crashes the process.
        """
        own = self._memory.become_writer(number)
        self.settings = _Part(self._memory.cells, 0)
        return Row(number, own, 0, self._buckets)

    def close(self) -> None:
        """Unmap the memory, in the process that made it. To touch it afterwards crashes the process."""
        self._memory.close()


def fence() -> None:
    """Make this process's writes visible to all processors before its next reads.

    A processor may let a read overtake a write. The kernel's scheduler, which this call enters, does not
    (smp_mb__after_spinlock).
    """
    os.sched_yield()
