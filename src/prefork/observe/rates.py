"""How often an event of one cause may be logged: a decision, pure, with time as an argument.

Nothing here logs or reads a clock.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Kind = TypeVar("Kind")
Cause = tuple[Kind, str]

#: The detail under which those causes of a kind are counted that have no place of their own.
OTHERS = "other causes"
_NEVER = float("-inf")


class _Window:
    """The interval in which something was admitted last, and what was held back since."""

    __slots__ = ("admitted", "since", "suppressed")

    def __init__(self) -> None:
        self.since = _NEVER
        self.admitted = 0
        self.suppressed = 0


class LogRateLimiter(Generic[Kind]):
    """One line per cause and `interval` seconds, and `per_kind` lines per kind and interval.

    A cause is a kind and a detail. Peers have a hand in details, so their number is bounded (`causes`; further ones
    share one place per kind), and so are the lines of a kind whose details never repeat.
    """

    def __init__(self, interval: float = 1.0, per_kind: int = 3, causes: int = 64) -> None:
        self._interval = interval
        self._per_kind = per_kind
        self._causes = causes
        self._windows: dict[Cause[Kind], _Window] = {}
        self._kinds: dict[Kind, _Window] = {}
        self._swept = _NEVER

    def __len__(self) -> int:
        return len(self._windows)

    def admit(self, kind: Kind, detail: str, now: float) -> int | None:
        """How many of this cause were suppressed before this one, which is admitted; None: suppress this one, too."""
        window = self._window(kind, detail, now)
        if now - window.since < self._interval or not self._admit_kind(kind, now):
            window.suppressed += 1
            # Or it would be settled at once, and a flood of causes would be told in a flood of sums.
            if window.since == _NEVER:
                window.since = now
            return None
        window.since = now
        suppressed, window.suppressed = window.suppressed, 0
        return suppressed

    def settle(self, now: float) -> list[tuple[Kind, str, int]]:
        """Those causes of which something was suppressed and nothing came any more, with the number; once each.

        Of a kind that has many of them the first ones, and the rest in one number.
        """
        found: dict[Kind, list[tuple[str, int]]] = {}
        for (kind, detail), window in self._windows.items():
            if window.suppressed and now - window.since >= self._interval:
                found.setdefault(kind, []).append((detail, window.suppressed))
                window.suppressed = 0
        most = self._per_kind
        for causes in found.values():
            if len(causes) > most:
                causes[most - 1 :] = [(OTHERS, sum(number for _, number in causes[most - 1 :]))]
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
        if len(self._windows) >= self._causes:
            self._forget(now)
        if len(self._windows) >= self._causes:
            detail = OTHERS
        window = self._windows.setdefault((kind, detail), _Window())
        others = self._windows.get((kind, OTHERS))
        if others is not None:
            # It may have been among them until now.
            window.since = others.since
        return window

    def _forget(self, now: float) -> None:
        # Once an interval: under a flood of new causes every event comes here.
        if now - self._swept < self._interval:
            return
        self._swept = now
        for cause, window in list(self._windows.items()):
            if not window.suppressed and now - window.since >= self._interval:
                del self._windows[cause]
