"""When a dead worker is replaced: at once if it had served, later and later while deaths go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.restart import History, Policy, after_death

POLICY = Policy()
deaths = st.lists(
    st.tuples(st.one_of(st.none(), st.floats(0, POLICY.stable_after, exclude_max=True)), st.floats(0, 1)), max_size=40
)


@given(deaths)
def test_the_delay_never_shrinks_while_failures_go_on_and_has_a_ceiling(
    fates: list[tuple[float | None, float]],
) -> None:
    history = History()
    for served, dice in fates:
        before = history
        history = after_death(history, served, dice, POLICY)
        assert history.delay >= before.delay
        assert history.delay <= POLICY.ceiling * (1 + POLICY.jitter)
        assert history.failures == before.failures + 1


@given(deaths, st.floats(POLICY.stable_after, 1e6))
def test_a_worker_that_had_been_stable_is_replaced_at_once(
    fates: list[tuple[float | None, float]], served: float
) -> None:
    history = History()
    for fate in fates:
        history = after_death(history, *fate, POLICY)
    assert after_death(history, served, 1.0, POLICY) == History()


@given(st.floats(0, 60), st.lists(st.floats(0, 1), min_size=30, max_size=30))
def test_forks_in_any_minute_are_bounded(lifetime: float, dice: list[float]) -> None:
    """However long each worker serves before it dies again."""
    history = History()
    forks = [0.0]
    for throw in dice:
        history = after_death(history, lifetime, throw, POLICY)
        forks.append(forks[-1] + lifetime + history.delay)
    for at in forks:
        assert sum(at <= other < at + 60 for other in forks) <= 10
    history = History()
    forks = [0.0]
    for throw in dice:
        history = after_death(history, None, throw, POLICY)
        forks.append(forks[-1] + history.delay)
    assert sum(other < 60 for other in forks) <= 10
