"""Deadlines expire once, never early, and at most a tick late; those that were cleared cost nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.core.timer_wheel import MAX_EMPTY, TimerWheel

TICK = 0.05
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 5), st.floats(0, 3)),
        st.tuples(st.just("clear"), st.integers(0, 5), st.just(0.0)),
        st.tuples(st.just("pass"), st.just(0), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(steps)
def test_a_wheel_expires_what_a_plain_table_would(todo: list[tuple[str, int, float]]) -> None:
    wheel: TimerWheel[int] = TimerWheel(TICK)
    model: dict[int, float] = {}
    now = 100.0
    for what, key, value in todo:
        if what == "set":
            wheel.set(key, now + value)
            model[key] = now + value
        elif what == "clear":
            wheel.clear(key)
            model.pop(key, None)
        else:
            now += value
            for each in wheel.expired(now):
                assert model.pop(each) <= now
            assert all(deadline > now - TICK for deadline in model.values())
        assert len(wheel) == len(model)
        assert wheel.buckets <= 2 * len(model) + MAX_EMPTY + 1
        due = wheel.next_due()
        assert due is not None or not model
    due = wheel.next_due()
    while model:
        assert due is not None
        now = max(now, due)
        for each in wheel.expired(now):
            assert model.pop(each) <= now
        due = wheel.next_due()
    assert len(wheel) == 0


def test_moving_a_deadline_again_and_again_keeps_no_traces() -> None:
    wheel: TimerWheel[str] = TimerWheel(TICK)
    for i in range(100_000):
        wheel.set("transfer", i * 0.001 + 60)
        wheel.set("other", i * 0.001 + 30)
        wheel.clear("other")
    assert len(wheel) == 1
    assert wheel.buckets <= 2 * MAX_EMPTY + 4
    assert wheel.expired(159.0) == []
    assert wheel.expired(161.0) == ["transfer"]
