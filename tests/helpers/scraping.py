"""Ask the address of --metrics, as scrapers do, and read what it answers."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from prefork.testing import Server

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def metrics_port(server: Server) -> int:
    """Return the port of --metrics, which the log names."""
    return int(re.findall(r"metrics and status page on [\d.]+:(\d+) ", server.stderr())[-1])


def get(
    port: int, path: str, method: str = "GET", fields: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, fields and body of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=dict(fields or {}))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


class Samples:
    """The samples of one scrape in OpenMetrics, read by prometheus-client's own strict parser."""

    def __init__(self, port: int) -> None:
        status, fields, body = get(port, "/metrics", fields={"Accept": OPEN_METRICS})
        assert status == 200, body
        assert fields["content-type"].startswith("application/openmetrics-text")
        self.families = {each.name: each for each in text_string_to_metric_families(body.decode())}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    def sum(self, name: str, **labels: Any) -> float:
        """Return the sum of the samples with this name and these labels."""
        return sum(sample.value for sample in self._samples if sample.name == name and _has(sample.labels, labels))

    def values(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the values of a name by their labels."""
        return {tuple(sorted(s.labels.items())): s.value for s in self._samples if s.name == name}


def _has(labels: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    return all(labels.get(name) == str(value) for name, value in wanted.items())
