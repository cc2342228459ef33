"""What workers count, in files that outlive them: the second witness.

A worker maps a file of its own and stores into it; the pages belong to the kernel, so not even SIGKILL takes a number
back. Each word has one writer. Imported in workers, so it imports little.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

#: Where the files are: the variable of the environment that names the folder.
FOLDER = "SOAK_TALLY"
_SIZE = 4096


class Word(enum.IntEnum):
    """The words of a file, 64 bits each."""

    STARTED = 0
    """When the service was set up, in nanoseconds of the monotonic clock."""
    HANDLED = 1
    """Connections that a handler was called for."""
    ENDED = 2
    """Those of them whose handler has returned after a clean end of input."""
    BROKEN = 3
    """Those whose handler was ended by an error."""
    EXCHANGES = 4
    """Requests that were answered."""
    MARK = 5
    """Free for a scenario: a moment in nanoseconds of the monotonic clock."""


class Tally:
    """The counters of this process, in a file of its own."""

    def __init__(self) -> None:
        path = os.path.join(os.environ[FOLDER], f"{os.getpid()}-{time.monotonic_ns()}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, _SIZE)
        self.words = memoryview(mmap.mmap(fd, _SIZE)).cast("q")
        os.close(fd)
        self.words[Word.STARTED] = time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Counts:
    """The words of one worker, or the sums of many."""

    started: int = 0
    handled: int = 0
    ended: int = 0
    broken: int = 0
    exchanges: int = 0
    mark: int = 0

    @property
    def open(self) -> int:
        """Handlers that run, or were killed with their worker."""
        return self.handled - self.ended - self.broken

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            0,
            self.handled + other.handled,
            self.ended + other.ended,
            self.broken + other.broken,
            self.exchanges + other.exchanges,
        )


def read(folder: Path) -> dict[int, Counts]:
    """The words of every worker that there was, by pid. A pid that was used twice has the sums of both."""
    found: dict[int, Counts] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()[: 8 * len(Word)]
        if len(data) < 8 * len(Word):
            # Made a moment ago, and still empty.
            continue
        pid = int(path.name.partition("-")[0])
        counts = Counts(*memoryview(data).cast("q"))
        found[pid] = found[pid] + counts if pid in found else counts
    return found


def total(folder: Path) -> Counts:
    """The sums over all workers that there ever were."""
    return sum(read(folder).values(), Counts())
