"""What a run says of the server: a pure function of what was observed."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from soak.ledger import Bin

#: Of the command's documented exit statuses, those of a server that could not serve.
UNABLE = (2, 3, 4, 5)
BUG = 70
#: What a program prints that does not know what has happened to it.
RAW = ("Traceback (most recent call last)", "Fatal Python error", "Exception ignored in")


class Good(enum.StrEnum):
    """What may become of a server whose system call fails."""

    SERVED = "served"
    """It went on: all later connections were served, and it stopped as asked."""
    ENDED = "ended"
    """In one line, with a documented exit status."""
    UNREACHED = "not reached"
    """The call was not made so often in this run: nothing was shown."""


class Failure(enum.StrEnum):
    """What may not. One run can show several."""

    TRACEBACK = "traceback"
    BUG = "exit status 70"
    STATUS = "undocumented exit status"
    BY_ITSELF = "ended by itself with status 0"
    LINES = "ended without a line, or with several"
    HANG = "hang"
    DEAF = "a later connection was not served"
    LOST = "a connection was lost that was not the failing process's"
    TRUNCATED = "silent truncation"
    ORPHAN = "orphan process"
    FILE = "file left"


@dataclass(frozen=True, slots=True)
class Observed:
    """One run, from outside. `stopped`: it was there to be told to stop; `status` is None where it never ended."""

    injected: bool
    stopped: bool
    status: int | None
    stderr: str
    hangs: Collection[str] = ()
    """The steps that took longer than the deadline."""
    early: Counter[Bin] = field(default_factory=Counter)
    """Connections while the fault may happen."""
    late: Counter[Bin] = field(default_factory=Counter)
    """Connections after it."""
    excused: bool = False
    """Whether the failing process has connections of its own, which it may reset."""
    orphans: Collection[int] = ()
    files: Collection[str] = ()


def judge(seen: Observed) -> tuple[Failure, ...] | Good:
    """The failures, or what became of it."""
    failures = [
        *([Failure.TRACEBACK] if any(mark in seen.stderr for mark in RAW) else []),
        *_of_the_end(seen),
        *([Failure.HANG] if seen.hangs or _timeouts(seen.early + seen.late) else []),
        *_of_connections(seen),
        *([Failure.ORPHAN] if seen.orphans else []),
        *([Failure.FILE] if seen.files else []),
    ]
    if failures:
        return tuple(failures)
    if not seen.injected:
        return Good.UNREACHED
    return Good.SERVED if seen.status == 0 else Good.ENDED


def _of_the_end(seen: Observed) -> list[Failure]:
    if seen.status is None:
        return [Failure.HANG] if not seen.hangs else []
    if seen.status == 0:
        return [] if seen.stopped else [Failure.BY_ITSELF]
    if seen.status == BUG:
        return [Failure.BUG]
    if seen.status not in UNABLE:
        return [Failure.STATUS]
    lines = [line for line in seen.stderr.splitlines() if line.startswith("prefork: ")]
    return [] if len(lines) == 1 else [Failure.LINES]


def _of_connections(seen: Observed) -> list[Failure]:
    found = []
    if seen.stopped and seen.late.total() != seen.late[Bin.OK]:
        found.append(Failure.DEAF)
    if (seen.early + seen.late)[Bin.WRONG] or (seen.early + seen.late)[Bin.EARLY_END]:
        found.append(Failure.TRUNCATED)
    resets = sum(seen.early[end] for end in (Bin.REFUSED, Bin.RESET_BEFORE, Bin.RESET_AFTER))
    if resets and seen.stopped and not seen.excused:
        found.append(Failure.LOST)
    return found


def _timeouts(bins: Counter[Bin]) -> int:
    return bins[Bin.CONNECT_TIMEOUT] + bins[Bin.READ_TIMEOUT]
