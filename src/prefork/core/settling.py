"""Decide when files that are looked at again and again have changed, and have come to rest, so that they can be read.

Pure: what was seen and the time go in. What is looked at, and how it is read, is decided elsewhere.

A renewal writes several files, one after the other, and a part of them is of no use. So a change is read only after a
moment without another one. What cannot be used then, such as a new certificate with the old key, is read again for a
while without a word, because the rest may be on its way.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum, auto

#: Seconds between two looks.
LOOK_INTERVAL = 1.0
#: Seconds without a change after which files are read, and after which they are read although they change.
QUIET = 0.5
MAX_WAIT = 10.0
#: Seconds after a change during which files that cannot be used are not reported.
PATIENCE = 10.0
#: Seconds between two attempts at files that cannot be used and do not change: a directory on the way may have, or the
#: day from which a certificate is valid may have come.
RETRY_INTERVAL = 60.0

_NOTHING = object()


class WatchState(Enum):
    """What is known of the files that were looked at last."""

    SETTLED = auto()
    """They are in use."""
    CHANGING = auto()
    """They differ from those in use."""
    REFUSED = auto()
    """They cannot be used, and that was reported."""


class Settling:
    """The state of some files. At first nothing is in use, so the first look has them read.

    | state    | entered by                                  | left by                                      |
    |----------|---------------------------------------------|----------------------------------------------|
    | SETTLED  | `used`                                      | a look that sees something else              |
    | CHANGING | a look that sees something else             | `used`; `failed`, when PATIENCE is exhausted |
    | REFUSED  | `failed`, when PATIENCE is exhausted        | `used`; a look that sees something else      |
    """

    def __init__(self) -> None:
        self.state = WatchState.CHANGING
        self._seen: Hashable = _NOTHING
        self._began_at = 0.0
        """When the files began to differ from those in use."""
        self._look_at = self._read_at = float("-inf")

    def next_look(self) -> float:
        """Return when to look again."""
        return self._look_at

    def look(self, seen: Hashable, now: float) -> bool:
        """Take what was seen at the time `now`. Return whether to read the files, and to call `used` or `failed`."""
        if self._seen is _NOTHING:
            self._began_at = now
        elif seen != self._seen:
            if self.state is not WatchState.CHANGING:
                self.state, self._began_at = WatchState.CHANGING, now
            self._read_at = min(now + QUIET, self._began_at + MAX_WAIT)
        self._seen = seen
        waits = self.state is not WatchState.SETTLED and now < self._read_at
        self._look_at = min(now + LOOK_INTERVAL, self._read_at) if waits else now + LOOK_INTERVAL
        return self.state is not WatchState.SETTLED and not waits

    def used(self) -> None:
        """Note that what was read is in use."""
        self.state = WatchState.SETTLED

    def postpone(self, now: float) -> None:
        """Note that something else was asked to take the files into use; if it does not, they are read again."""
        self._read_at = now + RETRY_INTERVAL

    def failed(self, now: float) -> bool:
        """Note that what was read cannot be used. Return whether to report it: once for each change."""
        reports = self.state is WatchState.CHANGING and now >= self._began_at + PATIENCE
        if reports:
            self.state = WatchState.REFUSED
        self._read_at = now + (RETRY_INTERVAL if self.state is WatchState.REFUSED else LOOK_INTERVAL)
        return reports
