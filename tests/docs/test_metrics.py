"""The page of metrics lists the metrics of the code, with their types and labels."""

from __future__ import annotations

import re
from pathlib import Path

from prefork.exporter.catalogue import CATALOGUE
from prefork.exporter.families import WORKER_STATES

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_the_table_of_metrics_is_the_catalogue() -> None:
    rows = re.findall(r"^\| `(prefork_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE, re.M)
    assert rows == [
        (each.full_name, each.kind, ", ".join(f"`{label}`" for label in each.labels) or "none", each.help)
        for each in CATALOGUE
    ]


def test_the_states_of_workers_are_those_of_the_code() -> None:
    (row,) = re.findall(r"^\| `state` of `prefork_workers` \| (.*?) \|$", PAGE, re.M)
    assert tuple(re.findall(r"`(\w+)`", row)) == WORKER_STATES
