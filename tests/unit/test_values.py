"""Times and sizes as text: with units, without, and nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.checks import parse_duration
from prefork.cli.values import parse_seconds, parse_size
from prefork.errors import ConfigError

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30), ("2.5", 2.5), ("1e3", 1000), ("500ms", 0.5), ("10s", 10), ("5m", 300), ("1h", 3600), ("2d", 172800),
        ("1h30m", 5400), ("1.5h", 5400), (".5s", 0.5), ("1m1s500ms", 61.5), ("0s", 0),
    ],
)  # fmt: skip
def test_a_time_is_a_number_of_seconds_or_has_units(text: str, seconds: float) -> None:
    assert parse_seconds("--idle-timeout", text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "10x", "10 s", "1h30", "10S", "nan", "inf", "-5s", "1_0s", "\uff11s", "1e3s"]
)
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--idle-timeout .*: must be a number of seconds, such as 30 or 2\.5, or a "):
        parse_seconds("--idle-timeout", text)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_units_add_up(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in parts)
    assert parse_duration(text) == pytest.approx(sum(count * UNITS[unit] for count, unit in parts))


@given(st.text(alphabet="0123456789.msdh", max_size=400))
def test_any_text_is_a_time_or_refused(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or (seconds >= 0 and not math.isnan(seconds))


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("64K", 2**16), ("64KiB", 2**16), ("512M", 2**29), ("512MiB", 2**29), ("1G", 2**30)],
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse_size("--max-unsent", text) == size


@pytest.mark.parametrize("text", ["", "M", "1MB", "1T", "1.5G", "-1", "1m", "1 M"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a number of bytes, such as 536870912, 512M or 512MiB"):
        parse_size("--max-unsent", text)
