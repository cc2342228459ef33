"""`prefork.metrics` in one process: what a region of memory holds, and what a hostile one can do to its readers."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefork
from prefork.core.service_metrics import (
    MAX_RETIRED,
    REGION_WORDS,
    Definition,
    MetricKind,
    RetiredSeries,
    Series,
    Writer,
    problem_of,
    read_region,
    series_of,
)
from prefork.exporter.exposition import OPEN_METRICS, write
from prefork.exporter.service_families import service_families

COUNTER = Definition(MetricKind.COUNTER, "requests", ("kind",), (), "Requests.")
HISTOGRAM = Definition(MetricKind.HISTOGRAM, "seconds", (), (0.1, 1.0), "Seconds.")


def region() -> tuple[bytearray, Writer]:
    memory = bytearray(8 * REGION_WORDS)
    return memory, Writer(memoryview(memory).cast("q"), memoryview(memory).cast("d"))


def used(memory: bytearray) -> bytes:
    return bytes(memory[: 8 * struct.unpack_from("=q", memory)[0]])


def test_what_was_written_is_read() -> None:
    memory, writer = region()
    assert read_region(used(memory)) == []
    for definition, labels, values in (
        (COUNTER, ("a",), (3.0,)),
        (COUNTER, ("ü\udc80".encode("utf-8", "replace").decode(),), (4.0,)),
        (HISTOGRAM, (), (1.0, 2.0, 3.0, 7.5)),
    ):
        number = writer.define(definition)
        assert number is not None
        at = writer.add_series(number, definition, labels)
        assert at is not None
        for position, value in enumerate(values):
            writer.values[at + position] = value
    assert read_region(used(memory)) == [
        Series(COUNTER, ("a",), (3.0,)),
        Series(COUNTER, ("ü?",), (4.0,)),
        Series(HISTOGRAM, (), (1.0, 2.0, 3.0, 7.5)),
    ]


def test_a_full_region_takes_no_more_and_keeps_what_it_has() -> None:
    memory, writer = region()
    number = writer.define(COUNTER)
    assert number is not None
    added = 0
    while writer.add_series(number, COUNTER, (f"label {added}",)) is not None:
        added += 1
    assert len(read_region(used(memory))) == added > 1000


@given(st.binary(max_size=600))
def test_random_bytes_are_no_series_and_raise_nothing(data: bytes) -> None:
    read_region(data)


@given(st.data())
def test_a_region_with_some_bytes_changed_can_still_be_exposed(data: st.DataObject) -> None:
    memory, writer = region()
    for definition in (COUNTER, HISTOGRAM):
        number = writer.define(definition)
        assert number is not None
        writer.add_series(number, definition, ("a",) * len(definition.labels))
    content = bytearray(used(memory))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    retired = RetiredSeries()
    retired.add(0, read_region(bytes(content)))
    shown = {"running": [], "gone": retired.describe()}
    assert write(service_families(shown), OPEN_METRICS).endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "definition",
    [
        Definition(MetricKind.COUNTER, "prefork_workers"),
        Definition(MetricKind.COUNTER, "a b"),
        Definition(MetricKind.COUNTER, "_total"),
        Definition(MetricKind.COUNTER, "a_total"),
        Definition(MetricKind.COUNTER, "ok", ("worker",)),
        Definition(MetricKind.COUNTER, "ok", ("a", "a")),
        Definition(MetricKind.COUNTER, "ok", (), (1.0,)),
        Definition(MetricKind.HISTOGRAM, "ok"),
        Definition(MetricKind.HISTOGRAM, "ok", (), (2.0, 1.0)),
        Definition(MetricKind.HISTOGRAM, "ok", (), (float("inf"),)),
    ],
)
def test_definitions_that_cannot_be(definition: Definition) -> None:
    assert problem_of(definition)
    memory, writer = region()
    number = writer.define(definition)
    assert number is not None
    writer.add_series(number, definition, ("a",) * len(definition.labels))
    assert read_region(used(memory)) == []


def test_counts_of_dead_workers_are_kept_up_to_a_bound_and_gauges_are_not() -> None:
    retired = RetiredSeries()
    gauge = Definition(MetricKind.GAUGE, "sessions")
    for _ in range(2):
        retired.add(1, [Series(COUNTER, ("a",), (2.0,)), Series(gauge, (), (5.0,))])
    assert list(map(series_of, retired.describe())) == [(1, Series(COUNTER, ("a",), (4.0,)))]
    retired.add(1, [Series(COUNTER, (str(n),), (1.0,)) for n in range(2 * MAX_RETIRED)])
    assert len(retired.describe()) == MAX_RETIRED


def test_of_two_metrics_that_would_clash_one_is_shown() -> None:
    retired = RetiredSeries()
    retired.add(0, [Series(COUNTER, ("a",), (2.0,))])
    memory, writer = region()
    other = Definition(MetricKind.GAUGE, "requests_total")
    number = writer.define(other)
    assert number is not None
    writer.add_series(number, other, ())
    running = [[0, base64.b64encode(used(memory)).decode()]]
    families = service_families({"running": running, "gone": retired.describe()})
    assert [family.name for family in families] == ["requests_total"]


def test_metrics_work_without_a_server_and_check_what_they_are_given() -> None:
    requests = prefork.metrics.counter("unit_requests_total", "Requests.", ("kind",))
    assert requests is prefork.metrics.counter("unit_requests", "Requests.", ("kind",))
    requests.labels("a").inc()
    requests.labels("a").inc(2)
    assert (requests.labels("a").value, requests.labels("b").value) == (3, 0)
    sessions = prefork.metrics.gauge("unit_sessions", "Sessions.")
    sessions.set(5)
    sessions.dec()
    assert sessions.value == 4
    seconds = prefork.metrics.histogram("unit_seconds", "Seconds.", bounds=(0.1, 1))
    seconds.observe(0.5)
    seconds.observe(20)
    assert (seconds.count, seconds.sum) == (2, 20.5)
    for call in (
        lambda: requests.labels("a").inc(-1),
        lambda: requests.labels("a").inc(float("nan")),
        lambda: requests.labels("a", "b"),
        lambda: seconds.observe(float("nan")),
        lambda: prefork.metrics.gauge("unit_requests", "Another."),
        lambda: prefork.metrics.counter("prefork_requests", "Not ours."),
    ):
        with pytest.raises(ValueError, match=r"."):
            call()
