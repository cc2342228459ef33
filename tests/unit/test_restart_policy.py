"""When a dead worker is replaced: at once if it had served, later and later while deaths go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.restart_policy import History, Policy, after_death, after_fork, delay

POLICY = Policy()
deaths = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(0, POLICY.stable_after, exclude_max=True)), st.floats(0, 1)), max_size=40
)


@given(deaths)
def test_the_back_off_never_shrinks_while_failures_go_on_and_has_a_ceiling(
    fates: list[tuple[float | None, float]],
) -> None:
    history = History()
    for uptime, fraction in fates:
        before = history
        history = after_death(history, uptime, fraction, POLICY)
        assert history.back_off >= before.back_off
        assert history.back_off <= POLICY.max_delay * (1 + POLICY.jitter)
        assert history.failures == before.failures + 1


@given(deaths, st.floats(POLICY.stable_after, 1e6))
def test_a_worker_that_had_been_stable_is_replaced_at_once(
    fates: list[tuple[float | None, float]], served: float
) -> None:
    history = History()
    for fate in fates:
        history = after_death(history, *fate, POLICY)
    recovered = after_death(history, served, 1.0, POLICY)
    assert recovered == History()
    assert delay(recovered, 1000.0, POLICY) == 0


def test_a_worker_that_had_served_is_restarted_at_once_only_a_few_times() -> None:
    history = History()
    delays = []
    for _ in range(6):
        history = after_death(history, 1.0, 0.0, POLICY)
        delays.append(delay(history, 1000.0, POLICY))
    assert delays == [0, 0, 0, 4.0, 8.0, 16.0]


def test_a_worker_that_never_was_ready_is_never_replaced_at_once() -> None:
    history = History()
    delays = []
    for _ in range(8):
        history = after_death(history, None, 0.0, POLICY)
        delays.append(delay(history, 1000.0, POLICY))
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_workers_that_died_together_do_not_start_together() -> None:
    delays = {delay(after_death(History(), None, dice / 10, POLICY), 0.0, POLICY) for dice in range(10)}
    assert len(delays) == 10


lives = st.one_of(
    st.just(None), st.floats(0, 0.01), st.floats(0, POLICY.stable_after + 1), st.just(POLICY.stable_after)
)


@given(st.lists(st.tuples(lives, st.floats(0, 5), st.floats(0, 1)), min_size=12, max_size=60))
def test_forks_in_any_minute_are_bounded(fates: list[tuple[float | None, float, float]]) -> None:
    """Whatever its workers die of: at import, at once, after a while, or just after they have counted as stable."""
    now = 1000.0
    history = after_fork(History(), now, POLICY)
    forks = [now]
    for uptime, boot, fraction in fates:
        now += boot + (uptime or 0.0)
        history = after_death(history, uptime, fraction, POLICY)
        now += delay(history, now, POLICY)
        history = after_fork(history, now, POLICY)
        forks.append(now)
    for first, later in zip(forks, forks[POLICY.intensity :], strict=False):
        assert later - first >= POLICY.period - 1e-6
    assert len(history.forks) <= POLICY.intensity
