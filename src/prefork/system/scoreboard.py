"""The scoreboard: numbers that all processes of one server see, in shared memory, without a call or a lock.

A part for each worker and one for the supervisor; each part has one writer, so nothing is ever torn or lost, and who
reads may be a moment behind. A worker can write its own part alone: one that has gone mad, or was taken over, cannot
make its siblings look dead. No decisions live here, and no clock.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import fcntl
import mmap
import os
from collections.abc import Iterable

from ..core.counts import Cells, Counts
from .descriptors import Descriptor

_WORD = 8
_PAGE_WORDS = mmap.PAGESIZE // _WORD
#: Peers of a worker, in buckets of eight: 8192 of them fit, if they are spread evenly.
PEER_BUCKETS = 1024


class Field(enum.IntEnum):
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
    WAITING = 5
    """1 while it does not accept because the fleet has as many connections as it may."""


_OPEN, _SHARE, _ACCEPTED, _REFUSED = (int(field) for field in (Field.OPEN, Field.SHARE, Field.ACCEPTED, Field.REFUSED))


class Notice(enum.IntEnum):
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


_LIST_AT = 16


class Row:
    """One worker's numbers, `number` from 1; number 0 is the supervisor's."""

    __slots__ = ("_cells", "number", "start")

    def __init__(self, number: int, cells: Cells, start: int) -> None:
        self.number = number
        self.start = start
        self._cells = cells

    def __getitem__(self, field: Field | Notice) -> int:
        return self._cells[self.start + field]

    def __setitem__(self, field: Field | Notice, value: int) -> None:
        # One aligned store of a word: a reader sees the old value or the new one.
        self._cells[self.start + field] = value

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

    def peers(self) -> Counts:
        """Its open connections, by peer."""
        return Counts(self._cells, self.start + _PAGE_WORDS, PEER_BUCKETS)

    def clear(self) -> None:
        """All zero, for a new worker."""
        for field in Field:
            self[field] = 0
        self.peers().clear()


class Scoreboard:
    """Parts for the supervisor and `rows` workers, shared with every process that is forked from here on.

    The process that made it writes all of it. A child calls `enter` before anything of the service runs in it.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._fleet_words = _round_up(_LIST_AT + rows)
        self._row_words = _PAGE_WORDS + _round_up(Counts.words(PEER_BUCKETS))
        self._size = (self._fleet_words + rows * self._row_words) * _WORD
        self._file = _make_file(self._size)
        self._cells: Cells
        if self._file is None:
            self._cells = memoryview(mmap.mmap(-1, self._size)).cast("q")
        else:
            self._address = _map(self._file.fileno(), self._size, 0, mmap.PROT_READ | mmap.PROT_WRITE)
            self._cells = _cells(self._address, self._size)
        self.notices = self.row(0)

    def row(self, number: int) -> Row:
        """The part with this number: 1 to `rows` for workers, 0 for the supervisor."""
        if not 0 <= number <= self.rows:
            raise IndexError(f"row {number} of {self.rows}")
        return Row(number, self._cells, self._start(number))

    def _start(self, number: int) -> int:
        return self._fleet_words + (number - 1) * self._row_words if number else 0

    def loads(self, rows: Iterable[Row]) -> dict[int, tuple[int, int]]:
        """OPEN and SHARE of each, by its number. Here, as it is most of what an accept costs with many workers."""
        cells = self._cells
        return {row.number: (cells[row.start + _OPEN], cells[row.start + _SHARE]) for row in rows}

    def publish(self, accepting: Iterable[int], others: Iterable[int]) -> None:
        """Tell all workers the numbers of the rows of those that accept, and of those that only have connections."""
        lists = [list(accepting), list(others)]
        for position, number in enumerate([*lists[0], *lists[1]][: self.rows]):
            self._cells[_LIST_AT + position] = number
        self.notices[Notice.COUNT] = len(lists[0])
        self.notices[Notice.OTHERS] = len(lists[1])
        self.notices[Notice.VERSION] += 1

    def published(self) -> tuple[list[int], list[int]]:
        """The same, read: while it is being written, a moment's mixture of the old and the new."""
        count = min(max(0, self.notices[Notice.COUNT]), self.rows)
        total = min(count + max(0, self.notices[Notice.OTHERS]), self.rows)
        numbers = [self._cells[_LIST_AT + position] for position in range(total)]
        return numbers[:count], numbers[count:]

    def enter(self, number: int) -> Row:
        """In a worker: keep the right to write its own part, and lose it for the others, for good. Its own row.

        A row that was made before must not be touched afterwards: its memory is gone.
        """
        if self._file is None:
            return self.row(number)
        fd = self._file.fileno()
        size = self._row_words * _WORD
        own = _map(fd, size, self._start(number) * _WORD, mmap.PROT_READ | mmap.PROT_WRITE)
        with contextlib.closing(_open_for_reading(fd)) as read_only:
            reading = _map(read_only.fileno(), self._size, 0, mmap.PROT_READ)
        _libc().munmap(self._address, self._size)
        self._file.close()
        self._address = reading
        self._cells = _cells(reading, self._size)
        self.notices = self.row(0)
        return Row(number, _cells(own, size), 0)

    def close(self) -> None:
        """Give the memory back, in the process that made it. Nothing of it must be touched afterwards."""
        if self._file is not None:
            self._file.close()
            _libc().munmap(self._address, self._size)


def _round_up(words: int) -> int:
    return -(-words // _PAGE_WORDS) * _PAGE_WORDS


def _make_file(size: int) -> Descriptor | None:
    """The memory as a file that nobody can shrink: reading behind its end would kill every process that looks.

    None where there is no memfd (Linux 3.17): there is no second mapping then, and workers can write everything.
    """
    if not hasattr(os, "memfd_create"):
        return None
    file = Descriptor(os.memfd_create("prefork-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(file.fileno(), size)
    fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return file


def _open_for_reading(fd: int) -> Descriptor:
    """What is mapped of a descriptor that can write can be made writable again (mprotect(2)), so it is opened anew.
    Without /proc that cannot be: a mapping for reading keeps accidents out, and no more."""
    try:
        return Descriptor(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return Descriptor(os.dup(fd))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _map(fd: int, size: int, offset: int, protection: int) -> int:
    # Not the mmap module: its objects keep a duplicate of the descriptor, and with it the right to map all of it.
    address: int | None = _libc().mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def _cells(address: int, size: int) -> Cells:
    return (ctypes.c_int64 * (size // _WORD)).from_address(address)
