"""When a worker has reached its recycling limits, and which sockets of a reuseport group it accepts from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.recycling import JITTER, RecycleLimits
from prefork.worker.reuseport import own_sockets


def test_no_limit_is_never_reached() -> None:
    assert not RecycleLimits()
    assert RecycleLimits().reached(10**12, 1e9, 10**12) is None


def test_each_recycling_limit_works_by_itself() -> None:
    assert "10 connections (--max-connections-served)" in (RecycleLimits(connections=10).reached(10, 0, 0) or "")
    assert "60 s (--max-worker-age)" in (RecycleLimits(age=60).reached(0, 60, 0) or "")
    assert "5000000 bytes of memory (--max-worker-rss)" in (RecycleLimits(rss=4_000_000).reached(0, 0, 5_000_000) or "")
    assert RecycleLimits(10, 60, 4_000_000).reached(9, 59.9, 3_999_999) is None


@given(st.floats(0, 1), st.integers(1, 10**9))
def test_jitter_never_lowers_a_limit_and_raises_it_by_little(fraction: float, connections: int) -> None:
    drawn = RecycleLimits(connections, float(connections), connections).with_jitter(fraction)
    assert drawn.connections is not None
    assert drawn.age is not None
    assert connections <= drawn.connections <= connections * (1 + JITTER) + 1
    assert connections <= drawn.age <= connections * (1 + JITTER) * 1.001
    assert drawn.rss == connections


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_socket_has_a_worker_and_every_worker_a_socket(slots: int, sockets: int) -> None:
    owned = [own_sockets(slot, slots, sockets) for slot in range(slots)]
    assert set().union(*owned) == set(range(sockets))
    assert all(owned)
    if slots <= sockets:
        assert sum(map(len, owned)) == sockets, "none is shared when there are enough"
        assert max(map(len, owned)) - min(map(len, owned)) <= 1
