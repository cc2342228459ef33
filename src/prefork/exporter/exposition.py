"""Write metric families as text: OpenMetrics, or the older format of Prometheus, as the client accepts.

prometheus-client writes both. What the families are is in `families.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.registry import Collector

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = CONTENT_TYPE_PLAIN_0_0_4


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def accepted_type(accept: str) -> str:
    """Return the content type for an Accept field: OpenMetrics only for a client that names it."""
    named = {each.partition(";")[0].strip().lower() for each in accept.split(",")}
    return OPEN_METRICS if "application/openmetrics-text" in named else PLAIN


def write(families: Iterable[Metric], content_type: str) -> bytes:
    """Return the exposition of these families in one of the two types."""
    generate = open_metrics if content_type == OPEN_METRICS else plain_text
    text: bytes = generate(_Families(families))
    return text
