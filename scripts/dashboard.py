"""Write deploy/grafana/prefork.json, the Grafana dashboard, from the table of its panels.

    python scripts/dashboard.py            write the file
    python scripts/dashboard.py --check    exit with status 1 if the file is not current

To change a panel, change the table: the file is generated. Import it in Grafana (version 10 or newer), which asks for
the data source; `job` and `instance` choose the servers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "prefork.json"
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: What each query selects: the servers that the variables choose.
CHOSEN = 'job=~"$job",instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: queries by legend, where SEL stands for the chosen servers."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    stack: bool = False
    description: str = ""
    #: Values from which on a number is yellow, and red; the other way round if the first is larger.
    thresholds: Sequence[float] = ()


def stat(title: str, query: str, unit: str = "short", thresholds: Sequence[float] = (), description: str = "") -> Panel:
    return Panel(title, {"": query}, unit, "stat", 3, 4, description=description, thresholds=thresholds)


def rate(metric: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{SEL{labels}}}[$__rate_interval]))"


def quantiles(histogram: str) -> dict[str, str]:
    """Return queries for the median, 90 % and 99 % of a histogram."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{SEL}}[$__rate_interval]))"
    return {f"p{100 * q:g}": f"histogram_quantile({q:g}, {buckets})" for q in (0.5, 0.9, 0.99)}


PANELS: Mapping[str, Sequence[Panel]] = {
    "At a glance": (
        stat(
            "Workers missing",
            'sum(prefork_workers_target{SEL}) - sum(prefork_workers{SEL,state="ready"})',
            thresholds=(1, 1),
            description="Workers that there should be, less those that are ready.",
        ),
        stat("Connections", "sum(prefork_connections{SEL})"),
        stat(
            "Of the limit",
            "max(sum by (job, instance) (prefork_connections{SEL}) / prefork_connections_limit{SEL})",
            "percentunit",
            (0.6, 0.8),
            "Connections as a share of --max-connections, of the fullest server.",
        ),
        stat("Accepts", "sum(rate(prefork_connections_accepted_total{SEL}[$__rate_interval]))", "cps"),
        stat(
            "Fullest queue",
            "max(prefork_accept_queue_connections{SEL} / (prefork_accept_queue_limit{SEL} > 0))",
            "percentunit",
            (0.25, 0.5),
            "Connections that wait in the kernel, as a share of the queue's length.",
        ),
        stat(
            "Loop lag p99",
            "max(histogram_quantile(0.99, sum by (job, instance, worker, le) "
            "(rate(prefork_loop_lag_seconds_bucket{SEL}[$__rate_interval]))))",
            "s",
            (0.1, 1),
            "How late the slowest worker's event loop called a timer.",
        ),
        stat("Failed handlers", "sum(rate(prefork_handler_failures_total{SEL}[$__rate_interval]))", "cps", (0.001, 1)),
        stat(
            "Certificate expires in",
            "min(prefork_tls_certificate_expiry_timestamp_seconds{SEL}) - time()",
            "s",
            (30 * 86400, 14 * 86400),
        ),
    ),
    "Connections": (
        Panel(
            "Open, by worker",
            {"{{instance}} {{worker}}": "sum by (instance, worker) (prefork_connections{SEL})"},
            stack=True,
        ),
        Panel(
            "Accepted",
            {"{{instance}} {{worker}}": rate("prefork_connections_accepted_total", "instance, worker")},
            "cps",
        ),
        Panel(
            "Closed, by reason", {"{{reason}}": rate("prefork_connections_closed_total", "reason")}, "cps", stack=True
        ),
        Panel(
            "Refused, by reason", {"{{reason}}": rate("prefork_connections_refused_total", "reason")}, "cps", stack=True
        ),
        Panel("How long they lasted", quantiles("prefork_connection_duration_seconds"), "s"),
        Panel(
            "Accept queue",
            {
                "{{instance}} {{listener}}": "prefork_accept_queue_connections{SEL}",
                "{{instance}} {{listener}} limit": "prefork_accept_queue_limit{SEL}",
            },
        ),
        Panel(
            "Dropped by the kernel at a full queue",
            {"{{instance}}": "increase(prefork_listen_overflows_total{SEL}[$__rate_interval])"},
            description="Of all servers in the network namespace.",
        ),
        Panel(
            "Failed handlers",
            {"{{instance}} {{worker}}": rate("prefork_handler_failures_total", "instance, worker")},
            "cps",
        ),
        Panel(
            "The account",
            {
                "accepted": "sum(prefork_connections_accepted_total{SEL})",
                "closed": "sum(prefork_connections_closed_total{SEL})",
                "open": "sum(prefork_connections{SEL})",
            },
            description="accepted = open + closed, since each server's start.",
        ),
    ),
    "Traffic": (
        Panel(
            "Received",
            {"{{instance}} {{worker}}": rate("prefork_received_bytes_total", "instance, worker")},
            "Bps",
            stack=True,
        ),
        Panel(
            "Sent", {"{{instance}} {{worker}}": rate("prefork_sent_bytes_total", "instance, worker")}, "Bps", stack=True
        ),
        Panel("Unsent", {"{{instance}} {{worker}}": "prefork_unsent_bytes{SEL}"}, "bytes", stack=True),
    ),
    "Workers": (
        Panel("Workers, by state", {"{{state}}": "sum by (state) (prefork_workers{SEL}) > 0"}, stack=True),
        Panel(
            "Loop lag p99",
            {
                "{{instance}} {{worker}}": "histogram_quantile(0.99, sum by (instance, worker, le) "
                "(rate(prefork_loop_lag_seconds_bucket{SEL}[$__rate_interval])))"
            },
            "s",
        ),
        Panel(
            "Unexpected ends, by cause",
            {"{{cause}}": "sum by (cause) (increase(prefork_worker_exits_total{SEL}[$__rate_interval]))"},
        ),
        Panel(
            "CPU",
            {"{{instance}} {{worker}}": rate("prefork_worker_cpu_seconds_total", "instance, worker")},
            "percentunit",
        ),
        Panel("Resident memory", {"{{instance}} {{worker}}": "prefork_worker_resident_memory_bytes{SEL}"}, "bytes"),
        Panel("Open descriptors", {"{{instance}} {{worker}}": "prefork_worker_open_fds{SEL}"}),
        Panel("Age", {"{{instance}} {{worker}}": "time() - prefork_worker_start_time_seconds{SEL}"}, "s"),
        Panel(
            "Reloads",
            {
                "{{kind}} {{result}}": "sum by (kind, result) (increase(prefork_reloads_total{SEL}[$__rate_interval]))",
                "certificates {{result}}": "sum by (result) "
                "(increase(prefork_tls_certificate_reloads_total{SEL}[$__rate_interval]))",
            },
            description="A reload that fails leaves the old code and settings in service.",
        ),
        Panel(
            "Log lines dropped",
            {"{{instance}} {{worker}}": rate("prefork_log_lines_dropped_total", "instance, worker")},
            "cps",
        ),
    ),
    "TLS": (
        Panel(
            "Handshakes",
            {
                "{{result}} {{version}} resumed={{resumed}}": rate(
                    "prefork_tls_handshakes_total", "result, version, resumed"
                )
            },
            "cps",
            width=6,
        ),
        Panel("Time of a handshake", quantiles("prefork_tls_handshake_duration_seconds"), "s", width=6),
        Panel("Handshakes that wait", {"{{instance}} {{worker}}": "prefork_tls_handshakes_waiting{SEL}"}, width=6),
        Panel(
            "Certificates expire in",
            {"{{instance}} {{certificate}}": "prefork_tls_certificate_expiry_timestamp_seconds{SEL} - time()"},
            "s",
            "bargauge",
            width=6,
            thresholds=(30 * 86400, 14 * 86400),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON model has it."""
    return {
        "uid": "prefork",
        "title": "prefork",
        "description": "A pre-forking TCP server: connections, workers, traffic and TLS.",
        "tags": ["prefork"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_reloads()]},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    for name, query in (
        ("job", "label_values(prefork_workers_target, job)"),
        ("instance", 'label_values(prefork_workers_target{job=~"$job"}, instance)'),
    ):
        yield {
            "name": name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": name},
            "definition": query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"text": "All", "value": "$__all"},
        }


def _reloads() -> dict[str, Any]:
    return {
        "name": "Reloads",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": _chosen("changes(prefork_last_reload_success_timestamp_seconds{SEL}[$__interval]) > 0"),
        "titleFormat": "reload of {{instance}}",
    }


def _chosen(query: str) -> str:
    return query.replace("SEL", CHOSEN)


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for title, panels in PANELS.items():
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _at(0, top, 24, 1),
        }
        number, top, left = number + 1, top + 1, 0
        for panel in panels:
            if left + panel.width > COLUMNS:
                top, left = top + panel.height, 0
            yield _panel(panel, number, _at(left, top, panel.width, panel.height))
            number, left = number + 1, left + panel.width
        top += panels[-1].height


def _at(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, number: int, position: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": _chosen(query),
                "legendFormat": legend or "__auto",
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value"},
    "bargauge": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"},
}


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stack else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stack else "none"},
        }
    else:
        del defaults["min"]
        defaults["thresholds"] = {"mode": "absolute", "steps": _steps(panel.thresholds)}
    return defaults


def _steps(thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """Return Grafana's steps: each colour from its value upwards, and None is the beginning."""
    if not thresholds:
        return [_step("text", None)]
    first, second = thresholds
    if first > second:
        return [_step("red", None), _step("yellow", second), _step("green", first)]
    between = [_step("yellow", first)] if first < second else []
    return [_step("green", None), *between, _step("red", second)]


def _step(colour: str, value: float | None) -> dict[str, Any]:
    return {"color": colour, "value": value}


def main(arguments: Sequence[str]) -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in arguments:
        return 0 if FILE.exists() and FILE.read_text() == text else 1
    FILE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
