"""A token bucket: so many events a second, and a second's worth of them at once.

Pure: time is an argument, in seconds on a clock that never goes back.
"""

from __future__ import annotations


class TokenBucket:
    """Full at the beginning. `rate` may change at any time; 0 or less: no bound."""

    def __init__(self) -> None:
        self._tokens: float | None = None
        self._at = 0.0

    def take(self, rate: float, now: float) -> float:
        """0.0, and a token less; or the seconds until there is one, and nothing is taken."""
        if rate <= 0:
            self._tokens = None
            return 0.0
        most = max(1.0, rate)
        tokens = most if self._tokens is None else min(most, self._tokens + (now - self._at) * rate)
        self._at = now
        if tokens < 1.0:
            self._tokens = tokens
            return (1.0 - tokens) / rate
        self._tokens = tokens - 1.0
        return 0.0

    def refund(self) -> None:
        """A token that was taken and not used."""
        if self._tokens is not None:
            self._tokens += 1.0
