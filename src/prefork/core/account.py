"""The account of connections: what one process counts, in words that other processes read, and how it is added up.

accepted = open + the sum of `closed` by reason: at each moment, because `open` is the difference. Each count is one
word with one writer, and never goes down. Pure: memory is handed in, and no clock or socket appears here.
"""

from __future__ import annotations

import bisect
import enum
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from .count_table import Cells


class CloseReason(enum.StrEnum):
    """Why a connection ended: each has one reason, the first that applies in the order of `docs/status.md`."""

    DONE = "done"
    """Its handler returned, or one of the two sides closed it in order."""
    PEER_RESET = "peer_reset"
    """The peer reset it, or was lost."""
    HANDLER_FAILED = "handler_failed"
    PROXY_MALFORMED = "proxy_malformed"
    """What the proxy sent is no PROXY header of the configured version."""
    PROXY_TIMEOUT = "proxy_timeout"
    HANDSHAKE_FAILED = "handshake_failed"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    WRITE_TIMEOUT = "write_timeout"
    MAX_AGE = "max_age"
    READ_LIMIT = "read_limit"
    """The peer sent a line beyond --read-limit, and the handler let the error pass."""
    UNSENT_LIMIT = "unsent_limit"
    """Too many bytes were unsent: of the connection, or of its worker (--max-unsent)."""
    MAX_CONNECTIONS = "max_connections"
    MAX_CONNECTIONS_PER_IP = "max_connections_per_ip"
    PROXY_UNTRUSTED = "proxy_untrusted"
    """The peer is none of the proxies that may connect."""
    DESCRIPTORS = "descriptors"
    """It was refused, because the process had no descriptors or memory for it."""
    DRAIN = "drain"
    """It was aborted at the end of a drain."""
    KICKED = "kicked"
    """An operator ended it."""
    WORKER_DIED = "worker_died"
    """Its worker died with it."""

    position: int
    """Its place in the account. An attribute, because Enum.__hash__ is slow Python code."""


#: The reasons that are refusals: such a connection was closed before any byte was read.
REFUSALS: Final = (
    CloseReason.MAX_CONNECTIONS,
    CloseReason.MAX_CONNECTIONS_PER_IP,
    CloseReason.PROXY_UNTRUSTED,
    CloseReason.DESCRIPTORS,
)
#: The reasons that are deadlines.
DEADLINES: Final = (
    CloseReason.PROXY_TIMEOUT,
    CloseReason.HANDSHAKE_TIMEOUT,
    CloseReason.FIRST_BYTE_TIMEOUT,
    CloseReason.IDLE_TIMEOUT,
    CloseReason.WRITE_TIMEOUT,
    CloseReason.MAX_AGE,
)


class Handshake(enum.StrEnum):
    """The outcomes of TLS handshakes: version, and whether a session was resumed, of those that succeeded."""

    NEW_1_2 = "TLSv1.2 new"
    RESUMED_1_2 = "TLSv1.2 resumed"
    NEW_1_3 = "TLSv1.3 new"
    RESUMED_1_3 = "TLSv1.3 resumed"
    FAILED = "failed"
    TIMEOUT = "timeout"


#: The upper bounds of the buckets of each histogram, in seconds; one more bucket counts what is beyond the last.
DURATION_BOUNDS: Final = (0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0, 604800.0)
HANDSHAKE_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_REASONS = tuple(CloseReason)
_HANDSHAKES = tuple(Handshake)
for _position, _reason in enumerate(_REASONS):
    _reason.position = _position
_HANDSHAKE_AT = {handshake: position for position, handshake in enumerate(_HANDSHAKES)}

# Where each count stands in the words of an account.
RECEIVED, SENT, ACCEPTED, HANDLER_FAILURES, LOG_DROPPED, SILENT = range(6)
_CLOSED = 6
_HANDSHAKE = _CLOSED + len(_REASONS)
_DURATIONS = _HANDSHAKE + len(_HANDSHAKES)
_HANDSHAKE_DURATIONS = _DURATIONS + len(DURATION_BOUNDS) + 2
_LAGS = _HANDSHAKE_DURATIONS + len(HANDSHAKE_BOUNDS) + 2
WORDS: Final = _LAGS + len(LAG_BOUNDS) + 2

#: A larger count is nonsense that a hostile process has written: no machine gets there in a century.
_MAX_COUNT = 2**60
#: Readings of an account that changes all the time, until one is taken as it is.
_MAX_READINGS = 8
_NANOSECONDS = 1e9


class Account:
    """Counts in `cells` from `start` on: WORDS words that only this process writes."""

    __slots__ = ("_cells", "_start", "traffic")

    def __init__(self, cells: Any, start: int = 0) -> None:
        self._cells: Cells = cells
        self._start = start
        self.traffic: memoryview[int] = memoryview(cells).cast("B").cast("q")[start + RECEIVED : start + SENT + 1]
        """The bytes received and sent, to which streams add what they transfer."""

    def accepted(self) -> None:
        self._cells[self._start + ACCEPTED] += 1

    def closed(self, reason: CloseReason, seconds: float | None = None, silent: bool = False) -> None:
        """Count the end of a connection that was open for `seconds`, if that is known. `silent`: no byte went
        either way."""
        if silent:
            self._cells[self._start + SILENT] += 1
        # One word: a reader sees the connection as open or as closed, and never as neither or both.
        self._cells[self._start + _CLOSED + reason.position] += 1
        if seconds is not None:
            self._observe(_DURATIONS, DURATION_BOUNDS, seconds)

    def handler_failed(self) -> None:
        self._cells[self._start + HANDLER_FAILURES] += 1

    def log_dropped(self, lines: int = 1) -> None:
        self._cells[self._start + LOG_DROPPED] += lines

    def transferred(self, received: int, sent: int) -> None:
        """Count bytes that no stream has counted."""
        self._cells[self._start + RECEIVED] += received
        self._cells[self._start + SENT] += sent

    def handshake(self, outcome: Handshake, seconds: float) -> None:
        """Count a TLS handshake that took `seconds`; only those that succeed are in the histogram."""
        self._cells[self._start + _HANDSHAKE + _HANDSHAKE_AT[outcome]] += 1
        if outcome not in (Handshake.FAILED, Handshake.TIMEOUT):
            self._observe(_HANDSHAKE_DURATIONS, HANDSHAKE_BOUNDS, seconds)

    def lag(self, seconds: float) -> None:
        """Count one measurement of how late the loop called a timer."""
        self._observe(_LAGS, LAG_BOUNDS, seconds)

    def _observe(self, at: int, bounds: Sequence[float], seconds: float) -> None:
        cells, first = self._cells, self._start + at
        cells[first + bisect.bisect_left(bounds, seconds)] += 1
        cells[first + len(bounds) + 1] += round(seconds * _NANOSECONDS)


def local_account() -> Account:
    """Return an account of this process's own, which no other process reads."""
    return Account(array("q", bytes(8 * WORDS)))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values were within each bound, and not within the one before; `sum` of the values in seconds."""

    bounds: Sequence[float]
    counts: Sequence[int]
    """One for each bound, and one for what is beyond the last."""
    sum: float


class Counters:
    """The counts of one process, or the sum of several: a copy, which does not change."""

    __slots__ = ("_words",)

    def __init__(self, words: Sequence[int] | None = None) -> None:
        self._words = [0] * WORDS if words is None else list(words)

    def __add__(self, other: Counters) -> Counters:
        return Counters([one + two for one, two in zip(self._words, other._words, strict=True)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counters) and self._words == other._words

    __hash__ = None  # type: ignore[assignment]  # a value that compares by its contents, of which no set is made

    @property
    def accepted(self) -> int:
        return self._words[ACCEPTED]

    @property
    def open(self) -> int:
        """Accepted connections that are not closed."""
        return self.accepted - sum(self._words[_CLOSED:_HANDSHAKE])

    @property
    def closed(self) -> dict[CloseReason, int]:
        return dict(zip(_REASONS, self._words[_CLOSED:_HANDSHAKE], strict=True))

    @property
    def arrivals(self) -> int:
        """Accepted connections without those that were refused, or ended without a byte: as health checks do."""
        return self.accepted - self.refused - self._words[SILENT]

    @property
    def refused(self) -> int:
        closed = self.closed
        return sum(closed[reason] for reason in REFUSALS)

    @property
    def handshakes(self) -> dict[Handshake, int]:
        return dict(zip(_HANDSHAKES, self._words[_HANDSHAKE:_DURATIONS], strict=True))

    @property
    def durations(self) -> Histogram:
        """Of connections, from accept to close."""
        return self._histogram(_DURATIONS, DURATION_BOUNDS)

    @property
    def handshake_durations(self) -> Histogram:
        return self._histogram(_HANDSHAKE_DURATIONS, HANDSHAKE_BOUNDS)

    @property
    def lags(self) -> Histogram:
        """How late the event loop called a timer."""
        return self._histogram(_LAGS, LAG_BOUNDS)

    def _histogram(self, at: int, bounds: Sequence[float]) -> Histogram:
        beyond = at + len(bounds) + 1
        return Histogram(bounds, self._words[at:beyond], self._words[beyond] / _NANOSECONDS)

    def raised_to(self, other: Counters) -> Counters:
        """Return the higher one of each count. A process that writes nonsense cannot make its counts go down."""
        words = list(map(max, self._words, other._words))
        words[ACCEPTED] = max(words[ACCEPTED], sum(words[_CLOSED:_HANDSHAKE]))
        return Counters(words)

    def ended(self) -> Counters:
        """Return the counts of a process that has died: what was open has died with it."""
        words = list(self._words)
        words[_CLOSED + CloseReason.WORKER_DIED.position] += max(0, self.open)
        return Counters(words)

    def describe(self) -> dict[str, Any]:
        """Return plain values for JSON; `docs/status.md` lists the keys."""
        words, closed = self._words, self.closed
        return {
            "accepted": self.accepted,
            "closed": {str(reason): count for reason, count in closed.items()},
            "refused": self.refused,
            "refusals": {str(reason): closed[reason] for reason in REFUSALS},
            "received": words[RECEIVED],
            "sent": words[SENT],
            "handler_failures": words[HANDLER_FAILURES],
            "deadlines": sum(closed[reason] for reason in DEADLINES),
            "handshakes": {str(outcome): count for outcome, count in self.handshakes.items()},
            "durations": _describe(self.durations),
            "handshake_durations": _describe(self.handshake_durations),
            "lags": _describe(self.lags),
            "silent": words[SILENT],
            "log_dropped": words[LOG_DROPPED],
        }


def _describe(histogram: Histogram) -> dict[str, Any]:
    return {"bounds": list(histogram.bounds), "counts": list(histogram.counts), "sum": round(histogram.sum, 9)}


def read(cells: Cells, start: int = 0) -> Counters:
    """Return a copy of an account that another process may be writing, and that it may have filled with nonsense.

    Two readings that agree are one moment, because counts never go down. Otherwise the last one is taken.
    """
    words = _copy(cells, start)
    for _ in range(_MAX_READINGS):
        again = _copy(cells, start)
        if again == words:
            break
        words = again
    found = Counters([word if 0 <= word <= _MAX_COUNT else 0 for word in words])
    return found if found.open >= 0 else Counters()


def _copy(cells: Cells, start: int) -> list[int]:
    words = [cells[position] for position in range(start, start + WORDS)]
    # Read last: a connection that is accepted and closed meanwhile must not count as closed only.
    words[ACCEPTED] = cells[start + ACCEPTED]
    return words
