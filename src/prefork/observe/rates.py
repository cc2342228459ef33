"""Decide how often events of one cause may be logged. Pure: the caller passes the time, and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Kind = TypeVar("Kind")
Cause = tuple[Kind, str]

#: The detail under which causes are counted that have no window of their own.
OTHERS = "other causes"
_NEVER = float("-inf")


@dataclass(slots=True)
class _Window:
    """The interval that began with the last admitted event, and the events suppressed since."""

    since: float = _NEVER
    admitted: int = 0
    suppressed: int = 0


class LogRateLimiter(Generic[Kind]):
    """Admits one line per cause and `interval` seconds, and `per_kind` lines per kind and interval.

    A cause is a kind and a detail. Because peers influence details, the number of causes is bounded (`max_causes`), and
    further causes of a kind share one window. The number of lines of a kind is bounded too, in case details never
    repeat.
    """

    def __init__(self, interval: float = 1.0, per_kind: int = 3, max_causes: int = 64) -> None:
        self._interval = interval
        self._per_kind = per_kind
        self._max_causes = max_causes
        self._windows: dict[Cause[Kind], _Window] = {}
        self._kinds: dict[Kind, _Window] = {}
        self._evicted_at = _NEVER

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, kind: Kind, detail: str, now: float) -> int | None:
        """Admit an event and return how many of its cause were suppressed before it; None: suppress this one too."""
        window = self._window(kind, detail, now)
        if now - window.since < self._interval or not self._admit_kind(kind, now):
            window.suppressed += 1
            # Otherwise the window would be flushed at once, and a flood of causes would log a flood of sums.
            if window.since == _NEVER:
                window.since = now
            return None
        window.since = now
        suppressed, window.suppressed = window.suppressed, 0
        return suppressed

    def flush_expired(self, now: float) -> list[tuple[Kind, str, int]]:
        """Return (kind, detail, suppressed) of causes whose interval is over, each only once.

        A kind with more than `per_kind` of them gets the first ones, and one sum for the others.
        """
        found: dict[Kind, list[tuple[str, int]]] = {}
        for (kind, detail), window in self._windows.items():
            if window.suppressed and now - window.since >= self._interval:
                found.setdefault(kind, []).append((detail, window.suppressed))
                window.suppressed = 0
        for causes in found.values():
            if len(causes) > self._per_kind:
                first = self._per_kind - 1
                causes[first:] = [(OTHERS, sum(number for _, number in causes[first:]))]
        return [(kind, detail, number) for kind, causes in found.items() for detail, number in causes]

    def _admit_kind(self, kind: Kind, now: float) -> bool:
        window = self._kinds.get(kind)
        if window is None:
            window = self._kinds[kind] = _Window()
        if now - window.since >= self._interval:
            window.since = now
            window.admitted = 0
        window.admitted += 1
        return window.admitted <= self._per_kind

    def _window(self, kind: Kind, detail: str, now: float) -> _Window:
        window = self._windows.get((kind, detail))
        if window is not None:
            return window
        if len(self._windows) >= self._max_causes:
            self._evict(now)
        if len(self._windows) >= self._max_causes:
            detail = OTHERS
        window = self._windows.setdefault((kind, detail), _Window())
        others = self._windows.get((kind, OTHERS))
        if others is not None:
            # The cause may have been counted among the others until now.
            window.since = others.since
        return window

    def _evict(self, now: float) -> None:
        # Only once an interval, because in a flood of new causes every event comes here.
        if now - self._evicted_at < self._interval:
            return
        self._evicted_at = now
        for cause, window in list(self._windows.items()):
            if not window.suppressed and now - window.since >= self._interval:
                del self._windows[cause]
