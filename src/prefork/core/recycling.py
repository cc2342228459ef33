"""When a worker is to be replaced although it is well: after a number of connections, an age, or at a memory size.

Pure: counters go in, the reason comes out. The worker counts (worker/recycling.py); `rolling_restart.py` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A worker's own limits are larger by up to this fraction, so that workers that started together do not end together.
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """Connections served, seconds since the worker was ready, resident bytes; None means no limit."""

    connections: int | None = None
    age: float | None = None
    rss: int | None = None

    def __bool__(self) -> bool:
        return (self.connections, self.age, self.rss) != (None, None, None)

    def with_jitter(self, fraction: float) -> RecycleLimits:
        """Return the limits of one worker; `fraction` is a random number from 0 to 1. Memory stays a hard limit."""
        factor = 1 + JITTER * fraction
        connections = None if self.connections is None else round(self.connections * factor)
        return RecycleLimits(connections, None if self.age is None else self.age * factor, self.rss)

    def without_rss(self) -> RecycleLimits:
        """Return the limits without that of memory, because a worker has reached it before it has served anything."""
        return RecycleLimits(self.connections, self.age)

    def reached(self, connections: int, age: float, rss: int) -> str | None:
        """Return which limit a worker with these counters has reached, if any."""
        if self.connections is not None and connections >= self.connections:
            return f"it has accepted {connections} connections (--max-connections-served)"
        if self.age is not None and age >= self.age:
            return f"it has served for {age:.0f} s (--max-worker-age)"
        if self.rss is not None and rss >= self.rss:
            return f"it uses {rss} bytes of memory (--max-worker-rss)"
        return None
