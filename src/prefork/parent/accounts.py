"""The accounts of all workers: those that run, and by slot those that have ended, so that no count goes down.

Adds up what `core/account.py` reads. Which workers there are is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..core.account import Counters
from ..system.scoreboard import Row


class Accounts:
    """Owns the counts of the workers that have ended, by slot. A slot keeps its counts when it is no longer wanted."""

    def __init__(self) -> None:
        self._retired: dict[int, Counters] = {}

    def retire(self, slot: int, row: Row) -> Counters:
        """Add the account of a worker that has ended, and return it. What it had open is closed with it."""
        last = row.counters().ended()
        self._retired[slot] = self._retired.get(slot, Counters()) + last
        return last

    def by_slot(self, running: Iterable[tuple[int, Counters]]) -> dict[int, Counters]:
        """Return the counts of each slot since the start, with those of the workers that run: (slot, counters)."""
        totals = dict(self._retired)
        for slot, counters in running:
            totals[slot] = totals.get(slot, Counters()) + counters
        return totals
