"""Add up the service's own metrics over its workers, for people: what the status page shows of them.

Pure. `/metrics` has each worker's part, and the buckets of histograms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import Metric

#: The maximum number of series: more are nothing to read on a page.
ROWS = 200

#: What a sample counts as, by the kind of its metric and by the end of its name.
_ROLES = {
    ("counter", "_total"): "value",
    ("gauge", ""): "value",
    ("histogram", "_count"): "count",
    ("histogram", "_sum"): "sum",
}


def service_totals(families: Iterable[Metric]) -> list[dict[str, Any]]:
    """Return at most ROWS series: `name`, `kind`, `labels`, and `value`, or `count` and `sum` of a histogram."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, Any]] = {}
    for family in families:
        for role, labels, value in _parts(family):
            key = (family.name, labels)
            if key not in found and len(found) == ROWS:
                break
            series = found.setdefault(key, {"name": family.name, "kind": family.type, "labels": dict(labels)})
            series[role] = series.get(role, 0) + value
    return list(found.values())


def _parts(family: Metric) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
    for sample in family.samples:
        role = _ROLES.get((family.type, sample.name.removeprefix(family.name)))
        if role is not None:
            yield role, tuple((name, text) for name, text in sample.labels.items() if name != "worker"), sample.value
