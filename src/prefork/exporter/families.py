"""Turn a status into metric families, by the catalogue.

Pure. docs/status.md says what a status has; prometheus-client writes the text.
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

from ..core.facts import ExitCause
from .catalogue import CATALOGUE, Entry, Kind

Status = Mapping[str, Any]
#: Label values and what is measured: a number, the fields of an info, or a histogram as status has it.
Sample = tuple[tuple[str, ...], Any]
#: A sample of the metric with this name.
NamedSample = tuple[str, tuple[str, ...], Any]

#: All states that `workers` has a sample for, also if no worker is in it, so that a query finds a zero.
WORKER_STATES = ("forking", "starting", "ready", "draining", "hung", "killed", "backoff")
#: States of workers whose connections will not go on for long.
_ENDING = ("draining", "hung", "killed")
_RESULTS = (("ok", "success"), ("failed", "failure"))
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
_GAUGES = {
    "rss": "worker_resident_memory_bytes",
    "fds": "worker_open_fds",
    "unsent": "unsent_bytes",
    "handshakes_waiting": "tls_handshakes_waiting",
}


def families(status: Status, overflows: int | None) -> list[Metric]:
    """Return the families of a status, and of the kernel's count of overflows, if that is known."""
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for name, labels, value in _samples(status):
        samples[name].append((labels, value))
    if overflows is not None:
        samples["listen_overflows_total"].append(((), overflows))
    return [_family(each, samples[each.name]) for each in CATALOGUE]


def _family(entry: Entry, samples: Iterable[Sample]) -> Metric:
    found: Any
    match entry.kind:
        case Kind.COUNTER:
            # Without its creation time, which would be one more series for each: start_time_seconds tells it.
            found = CounterMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            for labels, value in samples:
                found.add_metric(labels, value)
        case Kind.GAUGE:
            found = GaugeMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            for labels, value in samples:
                found.add_metric(labels, value)
        case Kind.HISTOGRAM:
            found = HistogramMetricFamily(entry.full_name, entry.help, labels=entry.labels)
            for labels, value in samples:
                found.add_metric(labels, list(buckets(value["bounds"], value["counts"])), value["sum"])
        case Kind.INFO:
            found = InfoMetricFamily(entry.full_name.removesuffix("_info"), entry.help)
            for _, value in samples:
                found.add_metric((), value)
    metric: Metric = found
    return metric


def buckets(bounds: Sequence[float], counts: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Yield cumulative buckets, as the exposition has them, of counts between the bounds."""
    total: float = 0
    for bound, count in zip([*(repr(float(each)) for each in bounds), "+Inf"], counts, strict=True):
        total += count
        yield bound, total


def handshake_labels(outcome: str) -> tuple[str, str, str]:
    """Return result, version and resumed of an outcome: `TLSv1.3 resumed`, or `failed` without the two others."""
    version, space, session = outcome.partition(" ")
    if not space:
        return outcome, "", ""
    return "ok", version, "true" if session == "resumed" else "false"


def _samples(status: Status) -> Iterator[NamedSample]:
    yield "build_info", (), {"version": status["version"], "streams": status["streams"]}
    yield from _of_server(status)
    # Slots that a `scale` has removed still count: otherwise a sum over all would go down.
    for slot in (*status["slots"], *status["former_slots"]):
        for name, labels, value in _of_slot({"cpu": slot["cpu"], **slot["totals"]}):
            yield name, (str(slot["slot"]), *labels), value
    yield from _of_workers(status["workers"])


def _of_server(status: Status) -> Iterator[NamedSample]:
    yield "start_time_seconds", (), status["started"]
    states = [each["state"] for each in status["workers"]]
    states += [each["state"] for each in status["slots"] if each["state"] == "backoff"]
    for state in WORKER_STATES:
        yield "workers", (state,), states.count(state)
    yield "workers_target", (), status["workers_target"]
    for cause in ExitCause:
        yield "worker_exits_total", (cause,), status["deaths"].get(cause, 0)
    yield from _of_reloads(status)
    if status["limit"] is not None:
        yield "connections_limit", (), status["limit"]
    for queue in status["queues"]:
        yield "accept_queue_connections", (queue["listener"],), queue["waiting"]
        yield "accept_queue_limit", (queue["listener"],), queue["limit"]
    for certificate in status["certificates"]:
        yield "tls_certificate_expiry_timestamp_seconds", (certificate["file"],), certificate["not_after"]


def _of_reloads(status: Status) -> Iterator[NamedSample]:
    reloads = status["reloads"]
    for result, word in _RESULTS:
        yield "reloads_total", ("reload", word), reloads[result]
    # After one that succeeds another supervisor counts, from zero.
    yield "reloads_total", ("upgrade", "failure"), status["failed_upgrades"]
    # A start has loaded everything, too.
    yield "last_reload_success_timestamp_seconds", (), reloads["last_success"] or status["started"]
    for result, word in _RESULTS:
        yield "tls_certificate_reloads_total", (word,), status["certificate_reloads"][result]


def _of_slot(totals: Status) -> Iterator[NamedSample]:
    """Yield what a slot's workers have counted, those included that are gone."""
    for key, name in _COUNTERS.items():
        yield name, (), totals[key]
    for key, name in _BY_REASON.items():
        for reason, count in totals[key].items():
            yield name, (reason,), count
    for outcome, count in totals["handshakes"].items():
        yield "tls_handshakes_total", handshake_labels(outcome), count
    for key, name in _HISTOGRAMS.items():
        yield name, (), totals[key]


def _of_workers(workers: Iterable[Status]) -> Iterator[NamedSample]:
    """Yield what living workers have now. During a reload a slot has two of them, which are added up."""
    by_slot: defaultdict[str, list[Status]] = defaultdict(list)
    for worker in workers:
        by_slot[str(worker["slot"])].append(worker)
    for slot, found in by_slot.items():
        yield "worker_start_time_seconds", (slot,), max(worker["started"] for worker in found)
        for key, name in _GAUGES.items():
            values = [worker[key] for worker in found if worker[key] is not None]
            if values:
                yield name, (slot,), sum(values)
        ending = sum(worker["open"] for worker in found if worker["state"] in _ENDING)
        yield "connections", (slot, "open"), sum(worker["open"] for worker in found) - ending
        yield "connections", (slot, "draining"), ending
