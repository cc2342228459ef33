"""The pure decisions about accepting: dispatch, token bucket, peers, and the table of counts."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.count_table import CountTable, buckets_for
from prefork.core.dispatch import ASSIGNED_SLACK, MAX_LAG, SLACK_SHIFT, choose, next_assigned
from prefork.core.peers import peer_key
from prefork.core.token_bucket import TokenBucket

loads = st.tuples(st.integers(0, 2000), st.integers(0, 5000))
fleets = st.dictionaries(st.integers(1, 20), loads, max_size=16)


@given(loads, fleets)
def test_only_a_sibling_with_less_is_chosen(own: tuple[int, int], siblings: dict[int, tuple[int, int]]) -> None:
    chosen = choose(own, siblings)
    if chosen is not None:
        open, assigned = siblings[chosen]
        assert open < own[0] or (open <= own[0] and assigned < own[1] - ASSIGNED_SLACK)
        assert open == min(each for each, _ in siblings.values()) or open <= own[0]


@given(fleets)
def test_in_every_fleet_some_worker_serves_what_it_accepts(fleet: dict[int, tuple[int, int]]) -> None:
    keeps = [choose(load, {n: other for n, other in fleet.items() if n != number}) for number, load in fleet.items()]
    assert not fleet or None in keeps


@given(st.integers(2, 16), st.lists(st.integers(0, 15), min_size=1, max_size=400))
def test_long_connections_are_even_whatever_worker_accepts_them(workers: int, accepting: list[int]) -> None:
    fleet = dict.fromkeys(range(workers), (0, 0))
    for each in accepting:
        number = each % workers
        chosen = choose(fleet[number], {n: load for n, load in fleet.items() if n != number})
        serving = number if chosen is None else chosen
        open, assigned = fleet[serving]
        fleet[serving] = (open + 1, assigned + 1)
    counts = [open for open, _ in fleet.values()]
    assert max(counts) - min(counts) <= 1 + (max(counts) >> SLACK_SHIFT)


@given(st.integers(2, 16), st.lists(st.integers(0, 15), min_size=1, max_size=400))
def test_short_connections_are_even_whatever_worker_accepts_them(workers: int, accepting: list[int]) -> None:
    fleet = dict.fromkeys(range(workers), (0, 0))
    for each in accepting:
        number = each % workers
        chosen = choose(fleet[number], {n: load for n, load in fleet.items() if n != number})
        serving = number if chosen is None else chosen
        fleet[serving] = (0, fleet[serving][1] + 1)
    counts = [assigned for _, assigned in fleet.values()]
    assert max(counts) - min(counts) <= ASSIGNED_SLACK + 1


def test_examples_of_the_choice() -> None:
    assert choose((5, 0), {}) is None
    assert choose((5, 0), {2: (5, 0), 3: (4, 0)}) == 3
    assert choose((5, 0), {2: (5, 0), 3: (6, 0)}) is None
    assert choose((5, 0), {2: (3, 9), 3: (3, 8)}) == 3, "of equals the one with less assigned"
    assert choose((1000, 0), {2: (986, 0)}) is None, "within 1/64"
    assert choose((1000, 0), {2: (980, 0)}) == 2
    assert choose((0, ASSIGNED_SLACK + 1), {2: (0, 0)}) == 2
    assert choose((0, ASSIGNED_SLACK), {2: (0, 0)}) is None
    assert choose((0, 100), {2: (1, 0)}) is None


def test_a_worker_that_was_blocked_is_not_given_everything_at_once() -> None:
    assert next_assigned(10, 1000) == 1000 - MAX_LAG + 1
    assert next_assigned(990, 1000) == 991
    assert next_assigned(7, None) == 8


# --- rates ------------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 2), max_size=200))
def test_no_more_than_the_rate_and_a_seconds_worth(rate: float, pauses: list[float]) -> None:
    bucket = TokenBucket()
    now = 100.0
    for taken, pause in enumerate(pauses, 1):
        now += pause
        seconds = bucket.take(rate, now)
        if seconds:
            # Told when to come back, it is let in then.
            now += seconds * 1.000001
            assert bucket.take(rate, now) < 1e-6 / rate
        assert taken <= (now - 100.0) * rate + max(1.0, rate) + 1e-3


def test_no_rate_is_no_bound_and_a_token_that_was_not_used_comes_back() -> None:
    bucket = TokenBucket()
    assert all(bucket.take(0, 1.0) == 0.0 for _ in range(1000))
    assert bucket.take(1, 1.0) == 0.0
    assert bucket.take(1, 1.0) > 0.9
    bucket.refund()
    assert bucket.take(1, 1.0) == 0.0


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("10.0.0.1", 1), ("10.0.0.1", 2), True),
        (("10.0.0.1", 1), ("10.0.0.2", 1), False),
        (("2001:db8::1", 1, 0, 0), ("2001:db8::ffff:1", 9, 0, 0), True),
        (("2001:db8::1", 1, 0, 0), ("2001:db8:0:1::1", 1, 0, 0), False),
        (("::ffff:10.0.0.1", 1, 0, 0), ("10.0.0.1", 2), True),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2", 1, 0, 2), True),
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_peer(one: object, other: object, same: bool) -> None:
    assert (peer_key(one) == peer_key(other)) is same


@pytest.mark.parametrize("address", ["", b"", "/run/x.sock", None, ()])
def test_a_unix_socket_has_no_peer(address: object) -> None:
    assert peer_key(address) is None


# --- counts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=300))
def test_a_count_is_exact_or_refused(history: list[tuple[int, bool]]) -> None:
    """A few keys in two buckets, which each of them may use: those that have no room are refused, and nothing of the
    others changes."""
    counts = CountTable([0] * CountTable.words(2), 0, 2)
    model = Counter[int]()
    for key, more in history:
        if more:
            if counts.add(key, 1):
                model[key] += 1
            else:
                assert sum(1 for n in model.values() if n) == 16
        elif model[key]:
            assert counts.add(key, -1)
            model[key] -= 1
        else:
            assert not counts.add(key, -1)
        assert all(counts.get(each) == model[each] for each in range(1, 61))


@given(st.integers(), st.integers(1, 3000))
def test_as_many_keys_as_a_table_is_made_for_have_room(seed: int, keys: int) -> None:
    rng = Random(seed)
    buckets = buckets_for(keys)
    cells = [0] * CountTable.words(buckets)
    counts = CountTable(cells, 0, buckets)
    numbers = [rng.getrandbits(62) or 1 for _ in range(keys)]
    for _ in range(2):
        assert all(counts.add(each, 1) for each in numbers)
        assert all(counts.add(each, -1) for each in numbers)
        # Places are used again, and nothing is left.
        assert not any(cells[1::2])


def test_a_writer_of_nonsense_counts_for_nothing() -> None:
    cells = [-(2**63), 2**63 - 1] * (CountTable.words(2) // 2)
    cells[1::2] = [-5] * (len(cells) // 2)
    cells[::2] = [7] * (len(cells) // 2)
    assert CountTable(cells, 0, 2).get(7) == 0
