"""What `prefork status` shows: the roster and the scoreboard as plain values.

Reads only. Clients may rely on the keys, which the documentation lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.roster import Roster
from ..core.states import Worker
from ..system.scoreboard import Row, WorkerStat


def describe_roster(roster: Roster, rows: Mapping[int, Row], ages: Mapping[int, float]) -> dict[str, Any]:
    """Return phase, generation and every worker. `rows`, and `ages` of heartbeats in seconds, are by worker id."""
    return {
        "state": roster.phase.name.lower(),
        "generation": roster.generation,
        "reloading": roster.reloading(),
        "deaths": dict(roster.deaths),
        "workers": [_worker(each, rows.get(each.id), ages.get(each.id)) for each in roster.workers.values()],
    }


def _worker(worker: Worker, row: Row | None, age: float | None) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": worker.state.name.lower(),
        "open": 0 if row is None else row.open,
        "accepted": 0 if row is None else row[WorkerStat.ACCEPTED],
        "refused": 0 if row is None else row[WorkerStat.REFUSED],
        "heartbeat_age": None if age is None else round(age, 3),
    }
