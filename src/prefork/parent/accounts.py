"""The accounts of all workers: those that run, and by slot those that have ended, so that no count goes down.

Adds up what `core/account.py` reads. Which workers there are is decided elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..core.account import Counters
from ..core.service_metrics import RetiredSeries, read_region
from ..system.scoreboard import Row


class Accounts:
    """Owns the counts of the workers that have ended, by slot. A slot keeps its counts when it is no longer wanted."""

    def __init__(self) -> None:
        self._retired: dict[int, Counters] = {}
        self._cpu: defaultdict[int, float] = defaultdict(float)
        self.service_metrics = RetiredSeries()
        """What services have counted themselves."""

    def retire(self, slot: int, row: Row, cpu: float) -> Counters:
        """Add the account of a worker that has ended, and return it. What it had open is closed with it.

        `cpu` is the CPU time that it used, in seconds.
        """
        self._cpu[slot] += cpu
        self.service_metrics.add(slot, read_region(row.read_service_metrics()))
        last = row.counters().ended()
        self._retired[slot] = self._retired.get(slot, Counters()) + last
        return last

    def cpu_by_slot(self, running: Iterable[tuple[int, float]]) -> dict[int, float]:
        """Return the CPU seconds of each slot since the start, with those of the workers that run: (slot, seconds)."""
        totals = defaultdict(float, self._cpu)
        for slot, seconds in running:
            totals[slot] += seconds
        return totals

    def by_slot(self, running: Iterable[tuple[int, Counters]]) -> dict[int, Counters]:
        """Return the counts of each slot since the start, with those of the workers that run: (slot, counters)."""
        totals = dict(self._retired)
        for slot, counters in running:
            totals[slot] = totals.get(slot, Counters()) + counters
        return totals
