"""The fixed timeouts: each one contains those that run inside it."""

from __future__ import annotations

import pytest

from prefork.core import time_limits


def test_a_worker_has_ended_by_itself_before_it_is_killed() -> None:
    assert time_limits.worker_exit_timeout(3.0) == 6.0
    inside = time_limits.ABORT_TIMEOUT + time_limits.worker_exit_timeout(3.0)
    assert inside < time_limits.worker_stop_timeout(0.0, 3.0)
    assert time_limits.worker_stop_timeout(30.0, 3.0) == 38.0


@pytest.mark.parametrize(("boot", "start"), [(60.0, 59.0), (5.0, 4.0), (1.0, 0.75)])
def test_a_service_is_given_up_before_its_worker_is(boot: float, start: float) -> None:
    assert time_limits.service_start_timeout(boot) == start


def test_a_successor_has_longer_than_its_workers() -> None:
    assert time_limits.successor_start_timeout(60.0) == 75.0
    assert time_limits.successor_stop_timeout(30.0, 3.0) == 44.0 > time_limits.worker_stop_timeout(30.0, 3.0)
