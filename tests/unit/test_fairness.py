"""Who goes first, how many a second, who is one peer, and counts that others read: the decisions about accepting."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.count_table import CountTable, buckets_for
from prefork.core.fairness import SHARE_LAG, SHARE_SLACK, first, moment, next_share
from prefork.core.peers import peer_key
from prefork.core.token_bucket import TokenBucket

loads = st.tuples(st.integers(0, 2000), st.integers(0, 5000))
fleets = st.dictionaries(st.integers(1, 20), loads, max_size=16)


@given(fleets, st.integers(0, 3000))
def test_somebody_always_goes(fleet: dict[int, tuple[int, int]], waiting: int) -> None:
    """Whatever the loads, there is a worker that nobody is ahead of: connections are never left to nobody."""
    for yielding in (False, True):
        ahead = {
            number: first(load, {n: other for n, other in fleet.items() if n != number}, waiting, yielding)
            for number, load in fleet.items()
        }
        assert not fleet or any(not who for who in ahead.values())


@given(loads, fleets, st.integers(0, 3000))
def test_only_those_that_have_less_go_first(
    own: tuple[int, int], siblings: dict[int, tuple[int, int]], waiting: int
) -> None:
    for yielding in (False, True):
        for number in first(own, siblings, waiting, yielding):
            open, share = siblings[number]
            assert open < own[0] or (open <= own[0] and share < own[1])


@given(loads, fleets, st.integers(0, 3000))
def test_the_more_wait_the_fewer_go_first(
    own: tuple[int, int], siblings: dict[int, tuple[int, int]], waiting: int
) -> None:
    fewer = first(own, siblings, 2 * waiting, False)
    assert set(fewer) <= set(first(own, siblings, waiting, False))
    assert set(first(own, siblings, waiting, False)) <= set(first(own, siblings, waiting, True))


def test_examples() -> None:
    assert first((5, 0), {2: (5, 0), 3: (4, 0)}, 0, False) == [], "one more is equal enough"
    assert first((6, 0), {2: (5, 0), 3: (4, 0)}, 0, False) == [3]
    assert first((6, 0), {2: (5, 0), 3: (4, 0)}, 0, True) == [2, 3], "who has begun to yield goes on until it is equal"
    assert first((1000, 0), {2: (985, 0)}, 0, False) == [], "a sixty-fourth"
    assert first((60, 0), {2: (0, 0), 3: (0, 0)}, 600, False) == [], "there is enough for all"
    assert first((0, SHARE_SLACK + 1), {2: (0, 0)}, 0, False) == [2], "of equals the one that was given fewer"
    assert first((0, 100), {2: (1, 0)}, 0, False) == []


def test_one_that_was_blocked_is_not_given_everything_at_once() -> None:
    assert next_share(10, 1000) == 1000 - SHARE_LAG + 1
    assert next_share(990, 1000) == 991
    assert next_share(7, None) == 8


def test_a_moment_is_longer_where_processors_are_shared() -> None:
    assert moment(4, 8) == moment(1, 1) < moment(16, 2)


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
def test_who_is_one_peer(one: object, other: object, same: bool) -> None:
    assert (peer_key(one) == peer_key(other)) is same


@pytest.mark.parametrize("address", ["", b"", "/run/x.sock", None, ()])
def test_a_unix_socket_has_no_peer(address: object) -> None:
    assert peer_key(address) is None


# --- counts -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=300))
def test_counts_are_right_or_refused(history: list[tuple[int, bool]]) -> None:
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
    dice = Random(seed)
    buckets = buckets_for(keys)
    cells = [0] * CountTable.words(buckets)
    counts = CountTable(cells, 0, buckets)
    numbers = [dice.getrandbits(62) or 1 for _ in range(keys)]
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
