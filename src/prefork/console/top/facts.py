"""A status as typed values, with every text in it escaped.

Pure. The reply of a server is checked here and nowhere behind: what is missing or of the wrong type becomes 0, None or
an empty value, because a server of another version may answer. Texts of peers and workers could steer the terminal.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...text import escape_ascii, escape_controls

#: The maximum of values that are read of one list. A server has fewer workers and slots than that.
MAX_ITEMS = 16_384
#: The maximum length of one text, in characters.
MAX_TEXT = 160
#: Keys of totals by reason or kind. They are closed sets in the server.
MAX_KEYS = 64


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values were within each bound in seconds, and one count more for those beyond the last."""

    bounds: Sequence[float] = ()
    counts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """What is counted of a worker, a slot or the server. Every number only grows."""

    accepted: int = 0
    refused: int = 0
    received: int = 0
    sent: int = 0
    failures: int = 0
    log_dropped: int = 0
    closed: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, int] = field(default_factory=dict)
    handshakes: Mapping[str, int] = field(default_factory=dict)
    durations: Histogram = Histogram()
    handshake_durations: Histogram = Histogram()
    lags: Histogram = Histogram()


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of a slot. `cpu` is in seconds, `rss` and `unsent` in bytes, `lag` the p99 of a minute in seconds.

    `missing` is what keeps it from being ready, and `paused` from accepting.
    """

    slot: int
    pid: int
    generation: int
    state: str
    paused: str
    missing: str
    age: float | None
    heartbeat_age: float | None
    rss: int | None
    cpu: float | None
    fds: int | None
    open: int
    unsent: int | None
    lag: float | None
    accepted: int
    received: int | None
    sent: int | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a worker, which outlives its processes. `retry_in` is in seconds."""

    slot: int
    state: str
    retry_in: float | None
    restarts: int
    last_exit: str


@dataclass(frozen=True, slots=True)
class Queue:
    """The kernel's queue of a listener: connections that wait for accept, and its limit."""

    listener: str
    waiting: int
    limit: int


@dataclass(frozen=True, slots=True)
class Reloads:
    """Reloads since the start, and how the last one ended; `at` is in Unix seconds."""

    ok: int = 0
    failed: int = 0
    result: str = ""
    generation: int | None = None
    at: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of a server. `at` is the monotonic time of the reading, and `clock` its Unix time."""

    at: float
    clock: float
    version: str
    target: str
    pid: int
    state: str
    generation: int
    uptime: float | None
    reloading: bool
    upgrading: bool
    suspended: bool
    predecessor: int | None
    listeners: tuple[str, ...]
    queues: tuple[Queue, ...]
    workers_target: int
    limit: int | None
    certificates: tuple[tuple[str, float], ...]
    deaths: Mapping[str, int]
    reloads: Reloads
    open: int
    totals: Counters
    slots: tuple[Slot, ...]
    workers: tuple[Worker, ...]

    @property
    def ready(self) -> int:
        """Return how many slots have a worker that accepts."""
        return len({worker.slot for worker in self.workers if worker.state == "ready"})

    @property
    def waiting(self) -> int:
        return sum(queue.waiting for queue in self.queues)

    @property
    def queue_limit(self) -> int:
        return sum(queue.limit for queue in self.queues)


def read_status(reply: Mapping[str, Any], at: float, clock: float) -> Snapshot:
    """Return the reply to `status`, of schema 2 or older, as a snapshot that was read at `at` and `clock`."""
    workers = tuple(sorted(map(_worker, _dicts(reply.get("workers"))), key=lambda each: (each.slot, each.pid)))
    totals = _dict(reply.get("totals"))
    counters = _counters(totals) if totals else _sum_of(workers, _dicts(reply.get("workers")))
    slots = tuple(sorted(map(_slot, _dicts(reply.get("slots"))), key=lambda each: each.slot))
    return Snapshot(
        at=at,
        clock=clock,
        version=_text(reply.get("version")),
        target=_narrow(reply.get("target")),
        pid=_int(reply.get("pid")),
        state=_text(reply.get("state")),
        generation=_int(reply.get("generation")),
        uptime=_number(reply.get("uptime")),
        reloading=reply.get("reloading") is True,
        upgrading=bool(reply.get("upgrading")),
        suspended=reply.get("suspended") is True,
        predecessor=_optional_int(reply.get("predecessor")),
        listeners=tuple(_text(each) for each in _list(reply.get("listeners"))),
        queues=tuple(map(_queue, _dicts(reply.get("queues")))),
        workers_target=_int(reply.get("workers_target")) or len({worker.slot for worker in workers}),
        limit=_optional_int(reply.get("limit")),
        certificates=tuple(
            (_text(each.get("file")), not_after)
            for each in _dicts(reply.get("certificates"))
            if (not_after := _number(each.get("not_after"))) is not None
        ),
        deaths=_tally(reply.get("deaths")),
        reloads=_reloads(_dict(reply.get("reloads"))),
        open=_int(totals["open"]) if "open" in totals else sum(worker.open for worker in workers),
        totals=counters,
        slots=slots or _slots_of(workers),
        workers=workers,
    )


def _worker(value: Mapping[str, Any]) -> Worker:
    return Worker(
        slot=_int(value.get("slot")),
        pid=_int(value.get("pid")),
        generation=_int(value.get("generation")),
        state=_text(value.get("state")),
        paused=_text(value.get("paused")),
        missing=_text(value.get("missing")),
        age=_number(value.get("age")),
        heartbeat_age=_number(value.get("heartbeat_age")),
        rss=_optional_int(value.get("rss")),
        cpu=_number(value.get("cpu")),
        fds=_optional_int(value.get("fds")),
        open=_int(value.get("open")),
        unsent=_optional_int(value.get("unsent")),
        lag=_number(_dict(value.get("lag")).get("p99")),
        accepted=_int(value.get("accepted")),
        received=_optional_int(value.get("received")),
        sent=_optional_int(value.get("sent")),
    )


def _slot(value: Mapping[str, Any]) -> Slot:
    return Slot(
        slot=_int(value.get("slot")),
        state=_text(value.get("state")),
        retry_in=_number(value.get("retry_in")),
        restarts=_int(value.get("restarts")),
        last_exit=_text(value.get("last_exit")),
    )


def _slots_of(workers: tuple[Worker, ...]) -> tuple[Slot, ...]:
    """Return the slots of a server that does not list them."""
    return tuple(Slot(slot, "", None, 0, "") for slot in sorted({worker.slot for worker in workers}))


def _queue(value: Mapping[str, Any]) -> Queue:
    return Queue(_text(value.get("listener")), _int(value.get("waiting")), _int(value.get("limit")))


def _reloads(value: Mapping[str, Any]) -> Reloads:
    last = _dict(value.get("last"))
    return Reloads(
        ok=_int(value.get("ok")),
        failed=_int(value.get("failed")),
        result=_text(last.get("result")),
        generation=_optional_int(last.get("generation")),
        at=_number(last.get("at")),
        reason=_text(last.get("reason")),
    )


def _counters(value: Mapping[str, Any]) -> Counters:
    return Counters(
        accepted=_int(value.get("accepted")),
        refused=_int(value.get("refused")),
        received=_int(value.get("received")),
        sent=_int(value.get("sent")),
        failures=_int(value.get("handler_failures")),
        log_dropped=_int(value.get("log_dropped")),
        closed=_tally(value.get("closed")),
        refusals=_tally(value.get("refusals")),
        handshakes=_tally(value.get("handshakes")),
        durations=_histogram(value.get("durations")),
        handshake_durations=_histogram(value.get("handshake_durations")),
        lags=_histogram(value.get("lags")),
    )


def _sum_of(workers: tuple[Worker, ...], values: list[Mapping[str, Any]]) -> Counters:
    """Return the totals of a server that does not tell them."""
    return Counters(sum(each.accepted for each in workers), sum(_int(value.get("refused")) for value in values))


def _tally(value: object) -> Mapping[str, int]:
    return {_text(key): _int(number) for key, number in list(_dict(value).items())[:MAX_KEYS]}


def _histogram(value: object) -> Histogram:
    found = _dict(value)
    bounds = tuple(_number(bound) or 0.0 for bound in _list(found.get("bounds")))
    counts = tuple(_int(number) for number in _list(found.get("counts")))
    return Histogram(bounds, counts) if len(counts) == len(bounds) + 1 else Histogram()


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value[:MAX_ITEMS] if isinstance(value, list) else []


def _dicts(value: object) -> list[Mapping[str, Any]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _narrow(value: object) -> str:
    """Return what the operator wrote with its letters, if each takes one column of a terminal; otherwise escaped."""
    text = escape_controls(value, MAX_TEXT) if isinstance(value, str) else ""
    wide = any(unicodedata.east_asian_width(each) in "WF" or unicodedata.combining(each) for each in text)
    return escape_ascii(text, MAX_TEXT) if wide else text


def _text(value: object) -> str:
    return escape_ascii(value, MAX_TEXT) if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    """Return a finite number, or None. JSON as Python reads it has NaN, infinity and integers beyond every float."""
    if type(value) is int and abs(value) < 1 << 64:
        return float(value)
    return value if type(value) is float and math.isfinite(value) else None


def _optional_int(value: object) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 64 else None


def _int(value: object) -> int:
    return _optional_int(value) or 0
