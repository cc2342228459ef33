"""What `prefork status` shows: the roster, the scoreboard and /proc as plain values.

Reads only. Clients may rely on the keys, which `docs/status.md` lists; SCHEMA changes when one changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.account import Counters
from ..core.roster import Roster
from ..core.states import Slot, Worker
from ..system.process_usage import Usage, usage_of
from ..system.scoreboard import Pause, Row, WorkerStat
from .workers import Workers

SCHEMA = 2


def describe_fleet(roster: Roster, workers: Workers, now: float, epoch: float) -> dict[str, Any]:
    """Return the phase, the totals, and every slot and worker. `epoch` makes a time since 1970 of a monotonic one."""
    rows, ages = workers.readings.rows(), workers.readings.heartbeats().ages
    counters = {worker_id: row.counters() for worker_id, row in rows.items()}
    totals = workers.readings.totals(counters)
    usages = {each.id: usage_of(each.pid) for each in roster.workers.values()}
    cpu = workers.readings.cpu_by_slot({each: usages[each].cpu for each in rows if each in usages})
    return {
        "state": roster.phase.name.lower(),
        "generation": roster.generation,
        "reloading": roster.reloading(),
        "workers_target": len(roster.slots),
        "deaths": dict(roster.deaths),
        "totals": _describe(sum(totals.values(), Counters())),
        "slots": [
            {**_slot(each, roster, now), **_totals(totals.get(each.number, Counters()), cpu.get(each.number, 0.0))}
            for each in roster.slots
        ],
        "former_slots": [
            {"slot": number, **_totals(counts, cpu.get(number, 0.0))}
            for number, counts in sorted(totals.items())
            if number >= len(roster.slots)
        ],
        "workers": [
            {
                **_worker(each, usages[each.id], ages.get(each.id), now, epoch),
                **_gauges(rows.get(each.id), workers.suspends(each.id)),
                **_describe(counters.get(each.id, Counters())),
            }
            for each in roster.workers.values()
        ],
    }


def _describe(counters: Counters) -> dict[str, Any]:
    return {"open": counters.open, **counters.describe()}


def _totals(counters: Counters, cpu: float) -> dict[str, Any]:
    return {"cpu": round(cpu, 3), "totals": _describe(counters)}


def _slot(slot: Slot, roster: Roster, now: float) -> dict[str, Any]:
    occupant = None if slot.occupant is None else roster.workers.get(slot.occupant)
    waits = occupant is None and slot.due is not None
    return {
        "slot": slot.number,
        "state": "backoff" if occupant is None else occupant.state.name.lower(),
        "retry_in": round(max(0.0, slot.due - now), 3) if waits and slot.due is not None else None,
        "restarts": slot.exits,
        "last_exit": slot.last_exit or None,
    }


def _worker(worker: Worker, usage: Usage, heartbeat_age: float | None, now: float, epoch: float) -> dict[str, Any]:
    return {
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": worker.state.name.lower(),
        "missing": worker.missing or None,
        "drain_left": None if worker.drain_until is None else round(max(0.0, worker.drain_until - now), 3),
        "started": round(worker.spawned_at + epoch, 3),
        "age": round(now - worker.spawned_at, 3),
        "heartbeat_age": None if heartbeat_age is None else round(heartbeat_age, 3),
        "rss": usage.rss,
        "cpu": usage.cpu,
        "fds": usage.descriptors,
    }


def _gauges(row: Row | None, suspended: bool) -> dict[str, Any]:
    if row is None:
        return {"paused": None, "unsent": 0, "handshakes_waiting": 0, "lag": None}
    # A worker notices it at its next connection only.
    pause = Pause.SUSPENDED if suspended else row.pause
    return {
        "paused": None if pause is Pause.NONE else pause.name.lower(),
        "unsent": max(0, row[WorkerStat.UNSENT]),
        "handshakes_waiting": max(0, row[WorkerStat.HANDSHAKES_WAITING]),
        "lag": _lag(row),
    }


def _lag(row: Row) -> Mapping[str, float]:
    columns = {"p50": WorkerStat.LAG_P50, "p99": WorkerStat.LAG_P99, "max": WorkerStat.LAG_MAX}
    return {name: max(0, row[column]) / 1e9 for name, column in columns.items()}
