"""The table of workers: one row for each process, and one for each slot that has none.

Pure. The columns are in the order of the screen; `rank` says which go first where it is narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import figures
from .facts import Slot, Snapshot, Worker
from .lines import Span, Tone
from .rates import Flow, Rates
from .table import Column

#: Above this p99 of the loop's lag, in seconds, a worker is late for its peers.
LATE, VERY_LATE = 0.1, 1.0
#: Above this share of a processor a worker has no reserve.
BUSY = 0.9
_GOOD_STATES = {"ready": Tone.PLAIN, "starting": Tone.ACCENT, "forking": Tone.ACCENT, "draining": Tone.WARNING}


@dataclass(frozen=True, slots=True)
class Row:
    """A worker with its rates and its slot; `worker` is None for a slot without a process."""

    slot: Slot
    worker: Worker | None
    flow: Flow


def rows_of(snapshot: Snapshot, rates: Rates) -> list[Row]:
    """Return the rows of all workers, in the order of slots and pids."""
    slots = {slot.slot: slot for slot in snapshot.slots}
    rows = [
        Row(
            slots.get(worker.slot) or Slot(worker.slot, worker.state, None, 0, ""),
            worker,
            rates.of(worker),
        )
        for worker in snapshot.workers
    ]
    used = {worker.slot for worker in snapshot.workers}
    rows += [Row(slot, None, Flow()) for slot in snapshot.slots if slot.slot not in used]
    return sorted(rows, key=lambda row: (row.slot.slot, 0 if row.worker is None else row.worker.pid))


def key_of(row: Row) -> str:
    """Return what tells this row from every other one."""
    return f"{row.slot.slot} {'' if row.worker is None else row.worker.pid}"


def texts_of(row: Row) -> Sequence[tuple[str, str]]:
    """Return the names and values that the filter looks at."""
    worker = row.worker
    return [
        ("slot", str(row.slot.slot)),
        ("pid", "" if worker is None else str(worker.pid)),
        ("state", _state(row)[0]),
        ("gen", "" if worker is None else str(worker.generation)),
        ("exit", row.slot.last_exit),
    ]


def _state(row: Row) -> Span:
    worker = row.worker
    if worker is None:
        retry = row.slot.retry_in
        state = row.slot.state or "gone"
        return (state if retry is None else f"{state} {figures.age(retry)}"), Tone.BAD
    if worker.paused:
        return f"paused: {worker.paused}", Tone.WARNING
    state = f"{worker.state}: {worker.missing}" if worker.missing else worker.state
    return state, _GOOD_STATES.get(worker.state, Tone.BAD)


def _lag(row: Row) -> Span:
    lag = None if row.worker is None else row.worker.lag
    tone = Tone.PLAIN if lag is None or lag < LATE else Tone.WARNING if lag < VERY_LATE else Tone.BAD
    return figures.delay(lag), tone


def _cpu(row: Row) -> Span:
    cpu = row.flow.cpu
    return figures.share(cpu), Tone.WARNING if cpu is not None and cpu > BUSY else Tone.PLAIN


def _exits(row: Row) -> Span:
    return figures.count(row.slot.restarts), Tone.WARNING if row.slot.restarts else Tone.QUIET


def _of(row: Row, name: str) -> float | None:
    """Return a number of the worker, or None for a slot without one."""
    value: float | None = None if row.worker is None else getattr(row.worker, name)
    return value


COLUMNS: Sequence[Column[Row]] = (
    Column("SLOT", 4, lambda row: str(row.slot.slot), lambda row: row.slot.slot, "N"),
    Column("PID", 7, lambda row: str(row.worker.pid) if row.worker else "-", lambda row: _of(row, "pid"), "D"),
    Column("GEN", 4, lambda row: figures.count(_of(row, "generation")), lambda row: _of(row, "generation"), rank=8),
    Column("STATE", 8, _state, lambda row: _state(row)[0], "S", extra=16, left=True, words=True),
    Column("CONN", 5, lambda row: figures.count(_of(row, "open")), lambda row: _of(row, "open"), "C", largest=True),
    Column("ACC/s", 5, lambda row: figures.rate(row.flow.accepted), lambda row: row.flow.accepted, "A", largest=True),
    Column("RX/s", 5, lambda row: figures.size(row.flow.received), lambda row: row.flow.received, "R", 3, largest=True),
    Column("TX/s", 5, lambda row: figures.size(row.flow.sent), lambda row: row.flow.sent, "T", 3, largest=True),
    Column(
        "UNSENT", 6, lambda row: figures.size(_of(row, "unsent")), lambda row: _of(row, "unsent"), "U", 6, largest=True
    ),
    Column("LAG", 5, _lag, lambda row: _of(row, "lag"), "L", largest=True),
    Column("CPU", 4, _cpu, lambda row: row.flow.cpu, "P", 2, largest=True),
    Column("RSS", 4, lambda row: figures.size(_of(row, "rss")), lambda row: _of(row, "rss"), "M", 5, largest=True),
    Column("FDS", 4, lambda row: figures.count(_of(row, "fds")), lambda row: _of(row, "fds"), rank=7, largest=True),
    Column("AGE", 5, lambda row: figures.age(_of(row, "age")), lambda row: _of(row, "age"), "G", 4, largest=True),
    Column("EXITS", 5, _exits, lambda row: row.slot.restarts, "X", largest=True),
    Column(
        "LAST EXIT",
        20,
        lambda row: (row.slot.last_exit or "-", Tone.QUIET),
        lambda row: row.slot.last_exit,
        rank=9,
        extra=60,
        left=True,
        words=True,
    ),
)
