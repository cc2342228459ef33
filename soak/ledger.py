"""The ledger: every attempt of a client ends in exactly one bin, once, and the bins sum to the attempts.

Only bookkeeping: `attempt.py` decides what happened on a socket, and so which bin it is.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

#: Losses that are told one by one; the rest is counted.
MOST_NOTES = 20


class Bin(enum.StrEnum):
    """How an attempt can end. All but the first are losses."""

    OK = "ok"
    REFUSED = "refused"
    RESET_BEFORE = "reset before the first byte"
    RESET_AFTER = "reset after it"
    EARLY_END = "early end"
    WRONG = "short or wrong bytes"
    CONNECT_TIMEOUT = "connect timeout"
    READ_TIMEOUT = "read timeout"


class Unbalanced(Exception):
    """The harness has lost count; nothing that it says can be believed."""


@dataclass
class Ledger:
    """Attempts and bins, in total and by kind (`tcp short`, `unix idle` ...). A retry would be another attempt."""

    attempts: int = 0
    exchanges: int = 0
    """Requests that were answered rightly; a long connection has many."""
    kinds: dict[str, Counter[Bin]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """The first losses, in words."""
    _open: set[int] = field(default_factory=set)

    def begin(self) -> int:
        """An attempt begins; the number to settle it by."""
        self.attempts += 1
        self._open.add(self.attempts)
        return self.attempts

    def settle(self, attempt: int, kind: str, end: Bin, note: str = "") -> None:
        """It has ended. Raises Unbalanced if it had never begun, or has ended before."""
        if attempt not in self._open:
            raise Unbalanced(f"attempt {attempt} ends as {end}, and is not open")
        self._open.discard(attempt)
        self.kinds.setdefault(kind, Counter())[end] += 1
        if end is not Bin.OK and len(self.notes) < MOST_NOTES:
            self.notes.append(f"{kind}: {end}{': ' if note else ''}{note}")

    @property
    def open(self) -> int:
        """Attempts that have not ended."""
        return len(self._open)

    def bins(self, prefix: str = "") -> Counter[Bin]:
        """All bins, of the kinds that begin with `prefix`."""
        total: Counter[Bin] = Counter()
        for kind, counts in self.kinds.items():
            if kind.startswith(prefix):
                total.update(counts)
        return total

    @property
    def ok(self) -> int:
        """Attempts that ended as they should."""
        return self.bins()[Bin.OK]

    @property
    def lost(self) -> int:
        """Attempts that did not end as they should."""
        return self.bins().total() - self.ok

    def balance(self) -> None:
        """Raises Unbalanced unless every attempt has ended in one bin."""
        settled = self.bins().total()
        if self._open or settled != self.attempts:
            raise Unbalanced(f"{self.attempts} attempts, {settled} in bins, {len(self._open)} still open")

    def merge(self, other: Ledger) -> None:
        """Add another client's, which has to balance."""
        other.balance()
        self.attempts += other.attempts
        self.exchanges += other.exchanges
        for kind, counts in other.kinds.items():
            self.kinds.setdefault(kind, Counter()).update(counts)
        self.notes = (self.notes + other.notes)[:MOST_NOTES]

    def encode(self) -> dict[str, Any]:
        """As plain values, for a pipe. Raises Unbalanced."""
        self.balance()
        kinds = {kind: {str(end): n for end, n in counts.items()} for kind, counts in self.kinds.items()}
        return {"attempts": self.attempts, "exchanges": self.exchanges, "kinds": kinds, "notes": self.notes}

    @classmethod
    def decode(cls, value: dict[str, Any]) -> Ledger:
        """What `encode` gave. Raises Unbalanced."""
        kinds = {
            kind: Counter({Bin(end): int(n) for end, n in counts.items()}) for kind, counts in value["kinds"].items()
        }
        ledger = cls(value["attempts"], value["exchanges"], kinds, list(value["notes"]))
        ledger.balance()
        return ledger

    def __str__(self) -> str:
        bins = self.bins()
        parts = [f"{bins[end]} {end}" for end in Bin if bins[end]]
        return f"{self.attempts} attempts: {', '.join(parts) or 'none'}; {self.exchanges} exchanges"
