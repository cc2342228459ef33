"""When a worker has served enough: after so many connections, so many seconds, or with so much memory in use.

Pure: what was counted goes in, the reason to be replaced comes out. Counting is the worker's, replacing the roster's.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A worker's own limits are up to this part beyond those that were asked for, so that workers that were started
#: together are not spent together.
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """Connections served, seconds since it was ready, resident bytes; None: no limit."""

    connections: int | None = None
    age: float | None = None
    rss: int | None = None

    def __bool__(self) -> bool:
        return (self.connections, self.age, self.rss) != (None, None, None)

    def drawn(self, dice: float) -> RecycleLimits:
        """The limits of one worker; `dice` is a random number from 0 to 1. Memory is not drawn for: it is a limit."""
        more = 1 + JITTER * dice
        connections = None if self.connections is None else round(self.connections * more)
        return RecycleLimits(connections, None if self.age is None else self.age * more, self.rss)

    def spent(self, connections: int, age: float, rss: int) -> str:
        """Why a worker that has come so far is to be replaced; "" while it is not."""
        if self.connections is not None and connections >= self.connections:
            return f"it has accepted {connections} connections (--max-connections-served)"
        if self.age is not None and age >= self.age:
            return f"it has served for {age:.0f} s (--max-worker-age)"
        if self.rss is not None and rss >= self.rss:
            return f"it uses {rss} bytes of memory (--max-worker-rss)"
        return ""
