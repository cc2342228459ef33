"""The catalogue of all metrics that prefork itself exposes: names, types, labels and help.

How their values are found is in `families.py`. docs/metrics.md has the same table, which tests/docs compares.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

PREFIX = "prefork_"


class Kind(enum.StrEnum):
    """The types of metrics, as OpenMetrics names them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric: `name` is without the prefix, and as a query has it, with `_total` or `_info`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


def _counter(name: str, help: str, *labels: str) -> Entry:
    return Entry(f"{name}_total", Kind.COUNTER, labels, help)


def _gauge(name: str, help: str, *labels: str) -> Entry:
    return Entry(name, Kind.GAUGE, labels, help)


def _histogram(name: str, help: str, *labels: str) -> Entry:
    return Entry(name, Kind.HISTOGRAM, labels, help)


CATALOGUE = (
    Entry("build_info", Kind.INFO, ("version", "streams"), "Version of prefork, and how it was built."),
    _gauge("start_time_seconds", "When the supervisor started, since the epoch."),
    # --- workers
    _gauge("workers", "Workers by state, and slots that wait to start one (backoff).", "state"),
    _gauge("workers_target", "Number of workers that there should be."),
    _gauge("worker_start_time_seconds", "When the newest worker of the slot started, since the epoch.", "worker"),
    _counter("worker_exits", "Ends of workers that were not asked to end, or not in time.", "cause"),
    _counter(
        "worker_cpu_seconds",
        "CPU time of the slot's workers.",
        "worker",
    ),
    _gauge("worker_resident_memory_bytes", "Resident memory of the slot's workers.", "worker"),
    _gauge("worker_open_fds", "Open descriptors of the slot's workers.", "worker"),
    _histogram("loop_lag_seconds", "How late the event loop called a timer.", "worker"),
    # --- generations
    _counter("reloads", "Reloads that replaced all workers, or failed.", "kind", "result"),
    _gauge("last_reload_success_timestamp_seconds", "When code and settings were last loaded by all workers."),
    # --- connections
    _gauge(
        "connections",
        "Open connections: on workers that serve (open) or are to end (draining).",
        "worker",
        "state",
    ),
    _gauge("connections_limit", "Maximum number of connections of all workers."),
    _counter("connections_accepted", "Connections accepted, refused ones included.", "worker"),
    _counter("connections_closed", "Connections that ended, by the one reason of each.", "worker", "reason"),
    _counter("connections_refused", "Connections closed before they were served.", "worker", "reason"),
    _histogram("connection_duration_seconds", "Time from accept to close.", "worker"),
    _gauge("accept_queue_connections", "Connections that wait in the kernel to be accepted.", "listener"),
    _gauge("accept_queue_limit", "Maximum length of that queue.", "listener"),
    _counter("listen_overflows", "Connections that the kernel dropped at a full queue, in this network namespace."),
    # --- what they carry
    _counter("received_bytes", "Bytes received from peers.", "worker"),
    _counter("sent_bytes", "Bytes sent to peers.", "worker"),
    _gauge("unsent_bytes", "Bytes that wait for peers to read.", "worker"),
    _counter("handler_failures", "Handlers that raised.", "worker"),
    # --- TLS
    _counter("tls_handshakes", "TLS handshakes that ended.", "worker", "result", "version", "resumed"),
    _histogram("tls_handshake_duration_seconds", "Time of the handshakes that succeeded.", "worker"),
    _gauge("tls_handshakes_waiting", "Handshakes that wait for the CPU.", "worker"),
    _gauge("tls_certificate_expiry_timestamp_seconds", "When the certificate expires, since the epoch.", "certificate"),
    _counter("tls_certificate_reloads", "Certificates that were loaded again, or could not be.", "result"),
    # --- the log
    _counter("log_lines_dropped", "Log lines that were held back or could not be written.", "worker"),
)
