"""The fixed timeouts: each one contains those that run inside it."""

from __future__ import annotations

from prefork.core import time_limits


def test_a_worker_has_ended_by_itself_before_it_is_killed() -> None:
    inside = time_limits.ABORT_TIMEOUT + time_limits.WORKER_EXIT_TIMEOUT
    assert inside < time_limits.WORKER_STOP_MARGIN
    assert time_limits.worker_stop_timeout(30.0) == 38.0


def test_a_successor_has_longer_than_its_workers() -> None:
    assert time_limits.successor_start_timeout(60.0) == 75.0
    assert time_limits.successor_stop_timeout(30.0) == 46.0 > time_limits.worker_stop_timeout(30.0)
