"""How reloads have ended since the start, for those that ask whether the code that serves is the newest.

Only remembers; `reload.py` carries reloads out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Reload:
    generation: int
    reason: str | None
    """Why it failed; None: it succeeded."""
    at: float


class ReloadHistory:
    """Counts reloads, and keeps the last one. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._counts = {"ok": 0, "failed": 0}
        self._last: _Reload | None = None
        self._last_success: float | None = None

    def succeeded(self, generation: int, now: float) -> None:
        self._counts["ok"] += 1
        self._last = _Reload(generation, None, now)
        self._last_success = now

    def failed(self, generation: int, reason: str, now: float) -> None:
        """Note that `generation` does not serve, and why."""
        self._counts["failed"] += 1
        self._last = _Reload(generation, reason, now)

    def describe(self, epoch: float) -> dict[str, Any]:
        """Return plain values. Times are seconds since 1970: `epoch` later than the monotonic ones."""
        last, success = self._last, self._last_success
        return {
            **self._counts,
            "last_success": None if success is None else round(success + epoch, 3),
            "last": None
            if last is None
            else {
                "generation": last.generation,
                "result": "ok" if last.reason is None else "failed",
                "at": round(last.at + epoch, 3),
                "reason": last.reason,
            },
        }
