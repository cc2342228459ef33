"""Old workers, which drain while the server goes on: what they hold, and which of them use too much memory.

Reads only. How long they may drain is decided in `core/fleet.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.facts import Fact, OldWorkerTooLarge
from ..core.roster import Roster
from ..core.states import ServerPhase, WorkerState
from ..events import OldConnectionsStay
from ..system.process_usage import usage_of
from .workers import Workers

#: Times the memory at which a worker is recycled: one that was recycled for its memory is beyond that already.
TOO_LARGE = 2


def connections_of(roster: Roster, workers: Workers, now: float) -> OldConnectionsStay:
    """Return how many connections are open on old workers, and for how many seconds they may be at most."""
    leaving = roster.phase is ServerPhase.LEAVING
    old = [each for each in roster.workers.values() if leaving or each.generation < roster.last_good]
    rows = workers.readings.rows()
    holding = [(each, rows[each.id].open) for each in old if each.id in rows and rows[each.id].open]
    ends = [each.drain_until for each, _ in holding]
    known = [until for until in ends if until is not None]
    seconds = round(max(known) - now, 3) if known and len(known) == len(ends) else None
    return OldConnectionsStay(sum(count for _, count in holding), len(holding), seconds)


def too_large(roster: Roster, limit_of: Callable[[int], int | None]) -> list[Fact]:
    """Find old workers that use more than TOO_LARGE times `limit_of` their generation, in bytes, and may drain without
    end: nothing else would end them while they have connections."""
    found: list[Fact] = []
    for each in roster.workers.values():
        limit = limit_of(each.generation)
        if each.state is not WorkerState.DRAINING or each.drain_until is not None or limit is None:
            continue
        rss = usage_of(each.pid).rss
        if rss is not None and rss > TOO_LARGE * limit:
            found.append(OldWorkerTooLarge(each.id, rss, TOO_LARGE * limit))
    return found
