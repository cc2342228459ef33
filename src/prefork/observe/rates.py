"""Decide how often events of one cause may be logged. Pure: the caller passes the time, and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Kind = TypeVar("Kind")
Cause = tuple[Kind, str, str]

#: The detail under which causes are counted that have no window of their own.
OTHERS = "other causes"
#: Causes of one kind whose first event is admitted at once, whatever else is logged, in the life of the process. A
#: bound, because peers can have a hand in causes.
MAX_FIRST = 16
_NEVER = float("-inf")


@dataclass(slots=True)
class _Window:
    """The interval that began with the last admitted event, and the events suppressed since."""

    since: float = _NEVER
    admitted: int = 0
    suppressed: int = 0


class LogRateLimiter(Generic[Kind]):
    """Admits one line per cause and `interval` seconds, and `per_kind` lines per kind and interval.

    A cause is a kind, a detail and a place. The first event of a cause is admitted in any case, for `max_first` causes
    of a kind. Because peers influence details, the number of causes is bounded (`max_causes`), and further causes of a
    kind share one window. The number of lines of a kind is bounded too, in case details never repeat.
    """

    def __init__(
        self, interval: float = 1.0, per_kind: int = 3, max_causes: int = 64, max_first: int = MAX_FIRST
    ) -> None:
        self._interval = interval
        self._per_kind = per_kind
        self._max_causes = max_causes
        self._max_first = max_first
        self._windows: dict[Cause[Kind], _Window] = {}
        self._kinds: dict[Kind, _Window] = {}
        self._known: dict[Kind, set[tuple[str, str]]] = {}
        """The causes of each kind whose first event was admitted."""
        self._evicted_at = _NEVER
        self.held = 0
        """How many events are suppressed and not yet counted in a line."""

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, kind: Kind, detail: str, place: str, now: float) -> int | None:
        """Admit an event and return how many of its cause were suppressed before it; None: suppress this one too."""
        window = self._window(kind, detail, place, now)
        is_first = self._is_first(kind, detail, place)
        if (not is_first and now - window.since < self._interval) or not self._admit_kind(kind, now, is_first):
            window.suppressed += 1
            self.held += 1
            # Otherwise the window would be flushed at once, and a flood of causes would log a flood of sums.
            if window.since == _NEVER:
                window.since = now
            return None
        window.since = now
        return self._take(window)

    def next_due(self) -> float | None:
        """Return when the first interval is over in which events were suppressed; None: there is none."""
        if not self.held:
            return None
        return min(window.since for window in self._windows.values() if window.suppressed) + self._interval

    def flush_expired(self, now: float) -> list[tuple[Kind, str, int]]:
        """Return (kind, detail, suppressed) of causes whose interval is over, each only once.

        A kind with more than `per_kind` of them gets the first ones, and one sum for the others.
        """
        if not self.held:
            return []
        found: dict[Kind, list[tuple[str, int]]] = {}
        for (kind, detail, _), window in self._windows.items():
            # The same sum as in `next_due`: a difference could be rounded to the other side, and the caller would spin.
            if window.suppressed and now >= window.since + self._interval:
                found.setdefault(kind, []).append((detail, self._take(window)))
        for causes in found.values():
            if len(causes) > self._per_kind:
                first = self._per_kind - 1
                causes[first:] = [(OTHERS, sum(number for _, number in causes[first:]))]
        return [(kind, detail, number) for kind, causes in found.items() for detail, number in causes]

    def _take(self, window: _Window) -> int:
        suppressed, window.suppressed = window.suppressed, 0
        self.held -= suppressed
        return suppressed

    def _is_first(self, kind: Kind, detail: str, place: str) -> bool:
        known = self._known.setdefault(kind, set())
        if (detail, place) in known or len(known) >= self._max_first:
            return False
        known.add((detail, place))
        return True

    def _admit_kind(self, kind: Kind, now: float, is_first: bool) -> bool:
        window = self._kinds.get(kind)
        if window is None:
            window = self._kinds[kind] = _Window()
        if now - window.since >= self._interval:
            window.since = now
            window.admitted = 0
        window.admitted += 1
        return is_first or window.admitted <= self._per_kind

    def _window(self, kind: Kind, detail: str, place: str, now: float) -> _Window:
        window = self._windows.get((kind, detail, place))
        if window is not None:
            return window
        if len(self._windows) >= self._max_causes:
            self._evict(now)
        if len(self._windows) >= self._max_causes:
            detail, place = OTHERS, ""
        window = self._windows.setdefault((kind, detail, place), _Window())
        others = self._windows.get((kind, OTHERS, ""))
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
