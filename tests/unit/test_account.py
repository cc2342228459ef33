"""The account of connections: it closes at each moment, whatever is counted, and nonsense does no harm."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.account import (
    DURATION_BOUNDS,
    WORDS,
    Account,
    CloseReason,
    Counters,
    Handshake,
    local_account,
    read,
)
from prefork.system.scoreboard import ACCOUNT_AT, Scoreboard

counts = st.lists(st.tuples(st.booleans(), st.sampled_from(list(CloseReason))), max_size=60)


@given(counts)
def test_accepted_is_open_and_closed_after_each_step(steps: list[tuple[bool, CloseReason]]) -> None:
    cells = array("q", bytes(8 * (WORDS + 3)))
    account = Account(cells, 3)
    before = open_now = 0
    for accepts, reason in steps:
        if accepts:
            account.accepted()
            open_now += 1
        elif open_now:
            account.closed(reason, 1.0)
            open_now -= 1
        found = read(cells, 3)
        assert found.open == open_now
        assert found.accepted == found.open + sum(found.closed.values()) >= before
        before = found.accepted
    died = read(cells, 3).ended()
    assert died.open == 0
    assert died.closed[CloseReason.WORKER_DIED] >= open_now
    assert died.accepted == before


@given(st.lists(st.integers(min_value=-(2**63), max_value=2**63 - 1), min_size=WORDS, max_size=WORDS))
def test_nonsense_of_a_hostile_worker_is_never_negative(words: list[int]) -> None:
    found = read(array("q", words))
    assert found.open >= 0
    assert all(count >= 0 for count in found.closed.values())
    assert found.ended().open == 0


nonsense = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), min_size=WORDS, max_size=WORDS)


@given(st.lists(nonsense, max_size=4))
def test_nonsense_makes_no_count_go_down(written: list[list[int]]) -> None:
    row = Scoreboard(1).row(1)
    row.account().accepted()
    before = row.counters()
    for words in written:
        for position, word in enumerate(words):
            row._cells[row.start + ACCOUNT_AT + position] = word
        found = row.counters()
        assert all(one <= two for one, two in zip(before._words, found._words, strict=True))
        assert found.accepted == found.open + sum(found.closed.values())
        assert found.open >= 0
        before = found


def test_sums_keep_every_count() -> None:
    one, two = local_account(), local_account()
    cells = array("q", bytes(8 * WORDS))
    account = Account(cells)
    account.traffic[0] += 10
    account.transferred(5, 7)
    account.handshake(Handshake.RESUMED_1_3, 0.002)
    account.handshake(Handshake.FAILED, 9.0)
    account.handler_failed()
    account.lag(0.3)
    account.closed(CloseReason.DONE, 0.5)
    account.closed(CloseReason.DONE, 10**9)
    del one, two
    both = read(cells) + read(cells)
    told = both.describe()
    # Nothing was accepted, so what is closed is nonsense, and nothing of it is believed.
    assert told["received"] == 0
    account.accepted()
    account.accepted()
    told = (read(cells) + read(cells) + Counters()).describe()
    assert (told["received"], told["sent"], told["accepted"], told["handler_failures"]) == (30, 14, 4, 2)
    assert told["handshakes"]["TLSv1.3 resumed"] == told["handshakes"]["failed"] == 2
    assert sum(told["handshake_durations"]["counts"]) == 2, "failures have no duration"
    assert told["durations"]["counts"][DURATION_BOUNDS.index(1)] == 2
    assert told["durations"]["counts"][-1] == 2, "the last bucket has no bound"
    assert told["lags"]["sum"] == 0.6
