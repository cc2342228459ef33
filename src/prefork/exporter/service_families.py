"""Turn the metrics of the service itself into metric families, with the label `worker`.

Pure. What workers have written is checked in `core/service_metrics.py`; here names that would clash are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ..core.service_metrics import Definition, MetricKind, Series, add_values, read_region, series_of
from .families import buckets

#: The values of one metric by slot and labels.
_Values = dict[tuple[str, ...], tuple[float, ...]]


def service_families(described: Mapping[str, Any]) -> list[Metric]:
    """Return the families of what the supervisor knows of the service's metrics.

    Two workers of one slot, and those before them, are added up. Of two metrics with one name the first is shown.
    """
    found: dict[Definition, _Values] = {}
    taken: dict[str, Definition] = {}
    for slot, series in _all(described):
        definition = series.definition
        if any(taken.setdefault(name, definition) != definition for name in _sample_names(definition)):
            continue
        values = found.setdefault(definition, {})
        key = (str(slot), *series.labels)
        values[key] = add_values(values[key], series.values) if key in values else series.values
    return [_family(definition, values) for definition, values in found.items()]


def _all(described: Mapping[str, Any]) -> Iterator[tuple[int, Series]]:
    # Those that run come first: a new generation may have made another metric of a name.
    for slot, data in described["running"]:
        for series in read_region(base64.b64decode(data)):
            yield slot, series
    yield from map(series_of, described["gone"])


def _sample_names(definition: Definition) -> list[str]:
    """Return the names that a metric takes from all others in OpenMetrics."""
    suffixes = {
        MetricKind.COUNTER: ("", "_total", "_created"),
        MetricKind.GAUGE: ("",),
        MetricKind.HISTOGRAM: ("", "_bucket", "_count", "_sum", "_created"),
    }
    return [definition.name + suffix for suffix in suffixes[definition.kind]]


def _family(definition: Definition, values: _Values) -> Metric:
    labels = ("worker", *definition.labels)
    family: Any
    match definition.kind:
        case MetricKind.COUNTER:
            family = CounterMetricFamily(definition.name, definition.help, labels=labels)
            for key, (value,) in values.items():
                family.add_metric(key, value)
        case MetricKind.GAUGE:
            family = GaugeMetricFamily(definition.name, definition.help, labels=labels)
            for key, (value,) in values.items():
                family.add_metric(key, value)
        case MetricKind.HISTOGRAM:
            family = HistogramMetricFamily(definition.name, definition.help, labels=labels)
            for key, (*counts, total) in values.items():
                family.add_metric(key, list(buckets(definition.bounds, counts)), total)
    metric: Metric = family
    return metric
