"""Readiness: decide when a worker that runs a program counts as ready, from what it listens on and what it says.

Pure: news and the time go in. A socket is named by its inode, which is the same in all processes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..program import ReadyKind, ReadyWhen

#: Seconds without another listen after which the first worker of all has listened on everything: nothing says what a
#: program listens on.
SETTLE = 0.1
#: Seconds after it became ready in which a program may still start to listen on other addresses.
START_GRACE = 5.0


class Readiness:
    """Tells when one worker is ready. `wanted` are groups of sockets, of each of which it must listen on one."""

    def __init__(self, when: ReadyWhen, wanted: Iterable[frozenset[int]], now: float) -> None:
        self._when = when
        self._wanted = tuple(wanted)
        self._forked = now
        self._told = False
        self._last_listen: float | None = None
        self._ready_since: float | None = None
        self.listening: set[int] = set()

    def on_listening(self, socket: int, now: float) -> None:
        """Note that the worker listens on one more socket."""
        if socket not in self.listening:
            self.listening.add(socket)
            self._last_listen = now

    def on_told(self) -> None:
        """Note that the worker said that it is ready."""
        self._told = True

    def missing(self) -> tuple[frozenset[int], ...]:
        """Return the groups of which the worker listens on no socket."""
        return tuple(group for group in self._wanted if self.listening.isdisjoint(group))

    def next_due(self) -> float | None:
        """Return when `is_ready` may change without news."""
        if self._ready_since is not None:
            return None
        if self._when.kind is ReadyKind.DELAY:
            return self._forked + self._when.number
        settles = self._when.kind is ReadyKind.LISTEN and not self._wanted and self._last_listen is not None
        return (self._last_listen or 0) + SETTLE if settles else None

    def is_ready(self, now: float) -> bool:
        """Return whether it is ready; once it was, it stays so."""
        if self._ready_since is None and self._decide(now):
            self._ready_since = now
        return self._ready_since is not None

    def is_starting(self, now: float) -> bool:
        """Return whether the worker boots, or became ready a moment ago."""
        return self._ready_since is None or now < self._ready_since + START_GRACE

    def may_ask(self, any_port: bool, now: float) -> bool:
        """Return whether the worker may have another address bound: while it boots, and a moment longer.

        Not a moment longer for `any_port`: a worker that is ready may open a port of its own for each connection.
        """
        return self._ready_since is None or (not any_port and self.is_starting(now))

    def _decide(self, now: float) -> bool:
        match self._when.kind:
            case ReadyKind.LISTEN:
                if self._wanted:
                    return not self.missing()
                due = self.next_due()
                return due is not None and now >= due
            case ReadyKind.DELAY:
                return now >= self._forked + self._when.number
        return self._told
