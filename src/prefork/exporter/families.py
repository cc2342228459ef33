"""Turn a status into metric families, by the catalogue.

Pure. A number that the status does not have is no sample; prometheus-client writes the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from .catalogue import BY_NAME, CATALOGUE, Entry, Kind

Status = Mapping[str, Any]
#: Label values and what is measured: a number, the fields of an info, or a histogram as status has it.
Sample = tuple[tuple[str, ...], Any]

#: All states that `workers` has a sample for, also if no worker is in it, so that a query finds a zero.
WORKER_STATES = ("forking", "starting", "ready", "draining", "hung", "killed", "backoff")


def families(status: Status, at: float, overflows: int | None) -> list[Metric]:
    """Return the families of a status of the time `at`, and of the kernel's count of overflows, if that is known."""
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for name, labels, value in _samples(status, at):
        samples[name].append((labels, value))
    if overflows is not None:
        samples["listen_overflows_total"].append(((), overflows))
    return [_family(each, samples[each.name], status.get("started")) for each in CATALOGUE]


def _family(entry: Entry, samples: Iterable[Sample], created: float | None) -> Metric:
    family: Any
    match entry.kind:
        case Kind.COUNTER:
            family = CounterMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            # No creation time of what the kernel has counted since long before.
            created = None if entry.name == "listen_overflows_total" else created
            for labels, value in samples:
                family.add_metric(labels, value, created=created)
        case Kind.GAUGE:
            family = GaugeMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            for labels, value in samples:
                family.add_metric(labels, value)
        case Kind.HISTOGRAM:
            family = HistogramMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            for labels, value in samples:
                family.add_metric(labels, list(buckets(value["bounds"], value["counts"])), value["sum"])
        case Kind.INFO:
            family = InfoMetricFamily(entry.full_name.removesuffix("_info"), entry.help)
            for _, value in samples:
                family.add_metric((), value)
    metric: Metric = family
    return metric


def buckets(bounds: Sequence[float], counts: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yield cumulative buckets, as the exposition has them, of counts between the bounds."""
    total: float = 0
    for bound, count in zip([*map(float, bounds), float("inf")], counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else repr(bound)), total


def _samples(status: Status, at: float) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    yield (
        "build_info",
        (),
        {
            "version": status["version"],
            "streams": status["streams"],
            "python": status.get("python", ""),
        },
    )
    yield from _of_server(status, at)
    for slot in status.get("slots", ()):
        for name, labels, value in _of_slot(slot.get("totals", {})):
            yield name, (str(slot["slot"]), *labels), value
    yield from _of_workers(status.get("workers", ()), at)


def _of_server(status: Status, at: float) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    yield "up_since_timestamp_seconds", (), status.get("started", round(at - status["uptime"], 3))
    states = [each["state"] for each in status["workers"]]
    states += [each["state"] for each in status.get("slots", ()) if each.get("state") == "backoff"]
    for state in WORKER_STATES:
        yield "workers", (state,), states.count(state)
    if "workers_target" in status:
        yield "workers_target", (), status["workers_target"]
    for cause, count in status["deaths"].items():
        yield "worker_exits_total", (cause,), count
    reloads = status.get("reloads", {})
    for result, word in (("ok", "success"), ("failed", "failure")):
        if result in reloads:
            yield "reloads_total", ("reload", word), reloads[result]
    last = reloads.get("last") or {}
    success = reloads.get("last_success", last.get("at") if last.get("result") == "ok" else status.get("started"))
    if success is not None:
        yield "last_reload_success_timestamp_seconds", (), success
    if status.get("limit") is not None:
        yield "connections_limit", (), status["limit"]
    for queue in status.get("queues", ()):
        yield "accept_queue_connections", (queue["listener"],), queue["waiting"]
        yield "accept_queue_limit", (queue["listener"],), queue["limit"]
    for certificate in status.get("certificates", ()):
        yield "tls_certificate_expiry_timestamp_seconds", (str(certificate["file"]),), certificate["not_after"]
    for result, count in status.get("certificate_reloads", {}).items():
        yield "tls_certificate_reloads_total", (result,), count


_COUNTERS = {
    "accepted": "connections_accepted_total",
    "received": "received_bytes_total",
    "sent": "sent_bytes_total",
    "handler_failures": "handler_failures_total",
    "log_dropped": "log_lines_dropped_total",
    "cpu": "worker_cpu_seconds_total",
}
_BY_REASON = {"closed": "connections_closed_total", "refusals": "connections_refused_total"}
_HISTOGRAMS = {
    "lags": "loop_lag_seconds",
    "durations": "connection_duration_seconds",
    "handshake_durations": "tls_handshake_duration_seconds",
}


def _of_slot(totals: Status) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield what a slot's workers have counted, those included that are gone."""
    for key, name in _COUNTERS.items():
        if key in totals:
            yield name, (), totals[key]
    for key, name in _BY_REASON.items():
        for reason, count in totals.get(key, {}).items():
            yield name, (reason,), count
    for outcome, count in totals.get("handshakes", {}).items():
        yield "tls_handshakes_total", handshake_labels(outcome), count
    for key, name in _HISTOGRAMS.items():
        if key in totals:
            yield name, (), totals[key]


def handshake_labels(outcome: str) -> tuple[str, str, str]:
    """Return result, version and resumed of an outcome: `TLSv1.3 resumed`, or `failed` without the two others."""
    version, space, session = outcome.partition(" ")
    if not space:
        return outcome, "", ""
    return "ok", version, "true" if session == "resumed" else "false"


_GAUGES = {
    "rss": "worker_resident_memory_bytes",
    "fds": "worker_open_fds",
    "unsent": "unsent_bytes",
    "handshakes_waiting": "tls_handshakes_waiting",
}


def _of_workers(workers: Iterable[Status], at: float) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield what living workers have now. During a reload a slot has two of them, which are added up."""
    by_slot: defaultdict[str, list[Status]] = defaultdict(list)
    for worker in workers:
        by_slot[str(worker["slot"])].append(worker)
    for slot, found in by_slot.items():
        ages = [worker["age"] for worker in found if worker.get("age") is not None]
        if ages:
            yield "worker_start_time_seconds", (slot,), round(at - min(ages), 2)
        for key, name in _GAUGES.items():
            values = [worker[key] for worker in found if worker.get(key) is not None]
            if values:
                yield name, (slot,), sum(values)
        handshakes = sum(worker.get("handshaking") or 0 for worker in found)
        yield "connections", (slot, "handshake"), handshakes
        yield "connections", (slot, "open"), max(0, sum(worker["open"] for worker in found) - handshakes)


assert set(BY_NAME) >= {*_COUNTERS.values(), *_BY_REASON.values(), *_HISTOGRAMS.values(), *_GAUGES.values()}
