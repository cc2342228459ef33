"""How long a lame duck accepts: a fixed time, or until the traffic of a simulated balancer has ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefork.core.lame_duck import AUTO, MAX_TIME, QUIET_TIME, READ_INTERVAL, DrainDelay, LameDuck

#: When the balancer of these tests notices, in seconds after the request to stop.
NOTICED = 6.0


def swim(arrivals: Callable[[float], int], delay: DrainDelay = AUTO) -> float:
    """Return the seconds until the drain, if `arrivals` have come and not ended silently by each moment."""
    duck, now = LameDuck(delay, 0.0), 0.0
    while not duck.is_over(now):
        if duck.wants_reading(now):
            duck.on_reading(arrivals(now), now)
        assert duck.next_due() > now, "it would spin"
        now = duck.next_due()
    return now


def test_a_fixed_delay_does_not_depend_on_traffic() -> None:
    assert swim(lambda now: int(now * 100), DrainDelay(2.5)) == 2.5


def test_without_traffic_it_ends_when_it_has_been_quiet() -> None:
    assert swim(lambda now: 1000) == QUIET_TIME


@pytest.mark.parametrize("rate", [0.5, 1.0, 20.0, 1000.0])
def test_it_lasts_until_the_balancer_has_noticed(rate: float) -> None:
    lasted = swim(lambda now: int(min(now, NOTICED) * rate))
    assert NOTICED - 1 / rate + QUIET_TIME <= lasted <= NOTICED + QUIET_TIME + 2 * READ_INTERVAL


def test_traffic_that_does_not_end_has_a_bound() -> None:
    assert swim(lambda now: int(now * 10)) == MAX_TIME


@pytest.mark.parametrize("offset", [0.0, 0.01, 0.1, 0.24])
def test_health_checks_that_end_silently_are_no_traffic(offset: float) -> None:
    """Three balancers check every two seconds. A check is counted while it is open, for 20 ms, and then taken back."""

    def arrivals(now: float) -> int:
        return sum((now + offset + balancer * 0.7) % 2.0 < 0.02 for balancer in range(3))

    assert swim(arrivals) == QUIET_TIME


def test_a_check_that_is_open_does_not_hide_a_connection() -> None:
    def arrivals(now: float) -> int:
        check = (now % 2.0) < 0.02
        return int(check) + (now >= 2.0) + (now >= 4.0)

    assert 4.0 + QUIET_TIME <= swim(arrivals) <= 4.0 + QUIET_TIME + 2 * READ_INTERVAL
