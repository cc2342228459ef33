"""Files that change are read when they have come to rest, at the latest after a while, and a failure is told once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.settling import LOOK_INTERVAL, MAX_WAIT, PATIENCE, QUIET, RETRY_INTERVAL, Settling, WatchState


def settled() -> Settling:
    watched = Settling()
    assert watched.look("old", 0.0), "the first look reads, because the files may have changed since the start"
    watched.used()
    return watched


def test_files_at_rest_are_looked_at_each_second_and_never_read() -> None:
    watched = settled()
    for second in range(1, 100):
        assert not watched.look("old", float(second))
        assert watched.next_look() == second + LOOK_INTERVAL


def test_a_change_is_read_once_after_a_moment_of_quiet() -> None:
    watched = settled()
    assert not watched.look("new", 5.0)
    assert watched.next_look() == 5.0 + QUIET
    assert watched.look("new", 5.0 + QUIET)
    watched.used()
    assert not watched.look("new", 7.0)


def test_the_second_file_of_a_pair_puts_the_read_off() -> None:
    watched = settled()
    assert not watched.look("half", 5.0)
    assert not watched.look("whole", 5.4)
    assert not watched.look("whole", 5.6)
    assert watched.look("whole", 5.4 + QUIET)


def test_a_failure_is_told_once_and_tried_again_seldom() -> None:
    watched = settled()
    watched.look("bad", 5.0)
    now, told, reads = 5.0, 0, 0
    while now < 5.0 + PATIENCE + 3 * RETRY_INTERVAL:
        now = watched.next_look()
        if watched.look("bad", now):
            reads += 1
            told += watched.failed(now)
    assert told == 1
    assert watched.state is WatchState.REFUSED
    assert PATIENCE <= reads <= PATIENCE + 5


def test_a_change_after_a_failure_is_a_new_round() -> None:
    watched = settled()
    watched.look("bad", 5.0)
    assert watched.look("bad", 20.0)
    assert watched.failed(20.0)
    assert not watched.look("good", 21.0)
    assert watched.look("good", 21.0 + QUIET)
    watched.used()
    assert watched.state is WatchState.SETTLED


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.0, 0.3), st.booleans()), max_size=200))
def test_whatever_happens_a_change_is_read_in_time(looks: list[tuple[int, float, bool]]) -> None:
    """Also of files that never rest; and each change is told at most once."""
    watched, now, began, told, rounds = settled(), 1.0, None, 0, 0
    last: object = "old"
    for seen, late, works in looks:
        now = max(now, watched.next_look()) + late
        if seen != last and watched.state is not WatchState.CHANGING:
            began, rounds = now, rounds + 1
        last = seen
        if watched.look(seen, now):
            if works:
                watched.used()
                began = None
            else:
                told += watched.failed(now)
        elif began is not None and watched.state is WatchState.CHANGING:
            assert now < began + MAX_WAIT + LOOK_INTERVAL
        assert watched.next_look() <= now + LOOK_INTERVAL
    assert told <= rounds
