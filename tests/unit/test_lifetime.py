"""When a worker has served enough, and which lanes are whose."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.recycling import JITTER, RecycleLimits
from prefork.core.reuseport import own_lanes


def test_no_limit_is_never_reached() -> None:
    assert not RecycleLimits()
    assert RecycleLimits().reached(10**12, 1e9, 10**12) is None


def test_each_limit_alone() -> None:
    assert "10 connections (--max-connections-served)" in (RecycleLimits(connections=10).reached(10, 0, 0) or "")
    assert "60 s (--max-worker-age)" in (RecycleLimits(age=60).reached(0, 60, 0) or "")
    assert "5000000 bytes of memory (--max-worker-rss)" in (RecycleLimits(rss=4_000_000).reached(0, 0, 5_000_000) or "")
    assert RecycleLimits(10, 60, 4_000_000).reached(9, 59.9, 3_999_999) is None


@given(st.floats(0, 1), st.integers(1, 10**9))
def test_what_is_drawn_is_never_less_and_not_much_more(fraction: float, connections: int) -> None:
    drawn = RecycleLimits(connections, float(connections), connections).with_jitter(fraction)
    assert drawn.connections is not None
    assert drawn.age is not None
    assert connections <= drawn.connections <= connections * (1 + JITTER) + 1
    assert connections <= drawn.age <= connections * (1 + JITTER) * 1.001
    assert drawn.rss == connections


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_lane_is_somebodys_and_every_worker_has_one(slots: int, lanes: int) -> None:
    owned = [own_lanes(slot, slots, lanes) for slot in range(slots)]
    assert set().union(*owned) == set(range(lanes))
    assert all(owned)
    if slots <= lanes:
        assert sum(map(len, owned)) == lanes, "none is shared where there are enough"
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
