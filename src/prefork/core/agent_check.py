"""What HAProxy's agent check is told of a server: whether to send new connections, and what share of them.

Pure: a status goes in (docs/status.md), one line comes out. The words are those of HAProxy's configuration manual,
`agent-check`. Only `ready` and `drain` are said besides `up`: HAProxy keeps what the agent last said, and a server that
is gone cannot take `maint` or `down` back. Each answer takes back whatever was said before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: The answer of a server that wants no new connections. Those that it has go on.
DRAIN = "drain"
#: HAProxy takes a weight of 0 % for `drain`.
MIN_WEIGHT = 1
MAX_WEIGHT = 100
#: The share of --max-connections up to which a server has its full weight; at the limit it has MIN_WEIGHT.
FREE_SHARE = 0.8
#: Seconds by which the loop is late (the median of a minute) up to which a worker counts in full, and from which on it
#: counts as MIN_WORKER.
IDLE_LAG = 0.05
BUSY_LAG = 0.5
MIN_WORKER = 0.1
#: Seconds in which what is told follows most of a change: a worker may pause for a moment, just when HAProxy asks.
SMOOTHING = 5.0
#: Percentage points that the load has to change before another weight is told, lower or higher. Otherwise a balancer
#: with several servers would move connections back and forth.
FALL_STEP = 10
RISE_STEP = 20
#: From here on it is the full weight that is told.
NEARLY_FULL = 95


class Weight:
    """The weight that was told last; begins with the full one, as HAProxy does."""

    def __init__(self) -> None:
        self.told = MAX_WEIGHT
        self._smooth = float(MAX_WEIGHT)
        self._measured_at = -math.inf

    def next(self, measured: float, now: float) -> int:
        """Return the percentage to tell, which follows the `measured` ones in steps. `now` is a monotonic time."""
        kept = math.exp(-max(0.0, now - self._measured_at) / SMOOTHING)
        self._smooth, self._measured_at = kept * self._smooth + (1 - kept) * measured, now
        weight = max(MIN_WEIGHT, min(MAX_WEIGHT, round(self._smooth)))
        falls, rises = self.told - weight >= FALL_STEP, weight - self.told >= RISE_STEP
        # Otherwise a server that is idle again would not get its share.
        if weight >= NEARLY_FULL:
            self.told = MAX_WEIGHT
        elif falls or rises or weight == MIN_WEIGHT:
            self.told = weight
        return self.told


def answer(status: Mapping[str, Any], unready: str, weight: Weight, now: float) -> str:
    """Return the line for a status, without its end; `unready` says why no new connections should come."""
    return DRAIN if unready else f"up ready {weight.next(measure(status), now)}%"


def measure(status: Mapping[str, Any]) -> float:
    """Return how much of its capacity a server has left, as a percentage of that of an idle one.

    The capacity is that of its workers, of which one that is missing or pauses counts nothing and one whose loop is
    late counts less, but no more than what the limit of connections leaves.
    """
    slots: dict[int, float] = {}
    for worker in status["workers"]:
        if worker["state"] == "ready":
            slots[worker["slot"]] = _capacity(worker)
    target: int = status["workers_target"]
    workers = sum(slots.values()) / max(1, target)
    return MAX_WEIGHT * min(workers, _room(status))


def _capacity(worker: Mapping[str, Any]) -> float:
    """Return the capacity of one worker, from 0 to 1."""
    if worker["paused"] is not None:
        return 0.0
    lag: float = 0.0 if worker["lag"] is None else worker["lag"]["p50"]
    return 1 - (1 - MIN_WORKER) * _share(lag, IDLE_LAG, BUSY_LAG)


def _room(status: Mapping[str, Any]) -> float:
    """Return how far the open connections are from the limit, from 0 to 1."""
    limit = status["limit"]
    return 1 - _share(status["totals"]["open"] / limit, FREE_SHARE, 1.0) if limit else 1.0


def _share(value: float, low: float, high: float) -> float:
    """Return where `value` is between two others, from 0 to 1."""
    return max(0.0, min(1.0, (value - low) / (high - low)))
