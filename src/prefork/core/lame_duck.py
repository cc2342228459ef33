"""The lame duck: decide how long a server that was asked to stop still accepts, because balancers learn of it late.

Pure: the time and the number of connections go in. What the server does meanwhile is decided in `roster.py`.

A balancer that has not noticed yet sends connections, which a draining server refuses. With a fixed delay the operator
says how long that takes. Otherwise the traffic shows it: nothing new has come for QUIET_TIME. The health checks of a
balancer go on, though, until the end. Most connect and close without a byte, so these are no traffic: a connection is
taken back when it has ended without one. Bytes of the server count, too, because a service may be one that only sends.
As a check may be open at the moment of a reading, an arrival counts when two readings in a row have it.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds without a new connection after which no balancer sends any more: longer than the 2 s between two checks that
#: are the default of HAProxy.
QUIET_TIME = 3.0
#: Seconds that it takes in any case: new connections may come from clients that ask no balancer.
MAX_TIME = 30.0
#: Seconds between two readings of the traffic.
READ_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class DrainDelay:
    """How long a server that is asked to stop accepts before it drains: `seconds`, or less if it is quiet before."""

    seconds: float = 0.0
    until_quiet: bool = False


NO_DELAY = DrainDelay()
#: What `--drain-delay auto` stands for.
AUTO = DrainDelay(MAX_TIME, until_quiet=True)


class LameDuck:
    """Decides when the delay that began at `now` is over."""

    def __init__(self, delay: DrainDelay, now: float) -> None:
        self.until = now + delay.seconds
        """When it ends in any case."""
        self._reads = delay.until_quiet
        self._read_at = now
        self._last: int | None = None
        self._arrivals: int | None = None
        """Those of which two readings were sure."""
        self._quiet_since = now

    def next_due(self) -> float:
        return min(self.ends_at(), self._read_at) if self._reads else self.until

    def ends_at(self) -> float:
        """Return when it ends, unless a connection comes before."""
        return min(self.until, self._quiet_since + QUIET_TIME) if self._reads else self.until

    def is_over(self, now: float) -> bool:
        return now >= self.ends_at()

    def wants_reading(self, now: float) -> bool:
        """Return whether the traffic is to be read now."""
        return self._reads and now >= self._read_at

    def on_reading(self, arrivals: int, now: float) -> None:
        """Note how many connections have come since the start of the server, without those that ended silently."""
        self._read_at = now + READ_INTERVAL
        before, last, self._last = self._arrivals, self._last, arrivals
        if last is None:
            return
        self._arrivals = min(last, arrivals)
        if before is not None and self._arrivals > before:
            self._quiet_since = now
