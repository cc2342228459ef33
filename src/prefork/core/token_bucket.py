"""A token bucket: `rate` events a second on average, and up to one second's worth of them at once.

Pure: time is an argument, in seconds on a monotonic clock.
"""

from __future__ import annotations


class TokenBucket:
    """Full at the beginning. `rate` may change with each call; 0 or less means no limit."""

    def __init__(self) -> None:
        self._tokens: float | None = None
        self._updated = 0.0

    def take(self, rate: float, now: float) -> float:
        """Take a token and return 0.0, or return the seconds until there is one and take nothing."""
        if rate <= 0:
            self._tokens = None
            return 0.0
        capacity = max(1.0, rate)
        tokens = capacity if self._tokens is None else min(capacity, self._tokens + (now - self._updated) * rate)
        self._updated = now
        if tokens < 1.0:
            self._tokens = tokens
            return (1.0 - tokens) / rate
        self._tokens = tokens - 1.0
        return 0.0

    def refund(self) -> None:
        if self._tokens is not None:
            self._tokens += 1.0
