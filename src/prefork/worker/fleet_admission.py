"""The gate of a worker: it asks about the whole fleet, by the scoreboard, without a lock.

Who should go first is decided in `core/fairness.py`. Limits over all workers hold exactly: a place is reserved on the
worker's own row before the sum over all rows is taken, and given back where it is one too many. So two that reserve the
last place at once may both give it back, and try again; never do both keep it.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable

from ..core import fairness
from ..core.count_table import CountTable
from ..core.peers import peer_key
from ..core.token_bucket import TokenBucket
from ..net.admission import AT_DESCRIPTORS, AT_LIMIT, AT_PEERS_LIMIT, UNCOUNTED, UNTIL_CAPACITY
from ..system.scoreboard import FleetSetting, Row, Scoreboard, WorkerStat, fence

#: Descriptors that a worker keeps free of connections: for log files, certificates, what a handler opens.
RESERVE = 32
#: Siblings that are looked at for one connection; of more, so many in turn.
MAX_SIBLINGS = 32
#: Seconds between looks for a place that another worker has left, doubled with each in vain, up to the longer one.
SOON, SELDOM = 0.001, 0.032
#: Seconds to step back when several have reserved the last place at once.
CONTENTION_DELAY = 0.0005


class FleetAdmission:
    """`row` is the worker's own on `scoreboard`. `refuses`: at the limit of the fleet connections are taken and closed,
    not left to wait.

    A worker that waits for a place looks again and again, less and less often. A descriptor by which workers tell each
    other would be every worker's to fill, to flood, or to make block (O_NONBLOCK is of the description that all share).
    """

    def __init__(self, scoreboard: Scoreboard, row: Row, loop: asyncio.AbstractEventLoop, refuses: bool) -> None:
        self.why = ""
        self._scoreboard = scoreboard
        self._row = row
        self._loop = loop
        self._refuses = refuses
        self._ending = False
        """Nobody accepts after us: what is beyond a limit is refused."""
        self._peers = row.peers()
        self._secret = scoreboard.secret
        self._bucket = TokenBucket()
        self._resume: Callable[[], None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        """The next look for a place; None while there is no need."""
        self._look_after = SOON
        self._version = -1
        self._siblings: list[Row] = []
        self._all: list[Row] = []
        self._tables: list[CountTable] = []
        self._turn = 0
        self._steps_back = 0
        self._doublings = 0
        self._yielding = False
        """Whether we let others go first, until we are not ahead at all."""
        self._seen: dict[int, fairness.Load] = {}
        """The loads of our siblings when we stepped back last."""
        self._absent: dict[int, fairness.Load] = {}
        """Those who did not use it, with the loads that they had."""
        self._processors = max(1, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 1
        self._held = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 16
        self._capacity = 0
        self._least_share: int | None = None
        """Of our siblings, as of a moment ago; None: there is none."""
        # In step with the others. Not the most that one claims: we would never be given a connection.
        shares = sorted(share for _, share in self._loads().values())
        row[WorkerStat.ASSIGNED] = shares[len(shares) // 2] if shares else 0

    # --- before a connection ------------------------------------------------------------------------------------------

    def ask(self, waiting: Callable[[], int], must: bool = False) -> float | None:
        row = self._row
        if must:
            self._refuses = self._ending = True
            row.reserve(1)
            return None
        if row[WorkerStat.OPEN] >= self._capacity and not self._has_descriptors():
            self.why = AT_DESCRIPTORS
            return UNTIL_CAPACITY
        seconds = self._step_back(waiting) or self._keep_rate()
        if seconds:
            return seconds
        row.reserve(1)
        limit = self._scoreboard.settings[FleetSetting.MAX_CONNECTIONS]
        return self._within(limit) if limit and not self._refuses else None

    def nothing(self) -> None:
        self._row.reserve(-1)
        self._bucket.refund()
        self._steps_back = 0

    def missed(self) -> None:
        self._steps_back = 0
        self._doublings = min(self._doublings + 1, fairness.MAX_DOUBLINGS)

    def _step_back(self, waiting: Callable[[], int]) -> float:
        """Seconds to let others go first; 0.0 where we should take the connection, or have waited long enough."""
        loads = self._loads()
        own = (self._row[WorkerStat.OPEN], self._row[WorkerStat.ASSIGNED])
        ahead = fairness.first(own, loads, 0, self._yielding)
        if not ahead:
            self._yielding = False
            self._doublings = 0
            return 0.0
        many = waiting()
        if many > len(loads):
            ahead = fairness.first(own, loads, many, self._yielding)
        if self._steps_back:
            self._doublings = 0
        if self._steps_back >= fairness.moment(len(self._siblings) + 1, self._processors):
            # They had their moment. Those who have not moved are busy, or gone; for those who have, this connection has
            # waited long enough, too.
            self._absent |= {number: loads[number] for number in ahead if self._seen.get(number) == loads[number]}
            return 0.0
        if not ahead:
            return 0.0
        if not self._steps_back:
            self._seen = loads
        self._yielding = True
        self._steps_back += 1
        return fairness.STEP * (1 << self._doublings)

    def _keep_rate(self) -> float:
        """Each worker keeps its part of the rate."""
        rate = self._scoreboard.settings[FleetSetting.ACCEPT_RATE]
        return self._bucket.take(rate / 1000 / (len(self._siblings) + 1), self._loop.time()) if rate else 0.0

    def _within(self, limit: int) -> float | None:
        """A place is reserved: whether the fleet has it."""
        total = self._total()
        if total > limit - len(self._all) - 1:
            # Near the limit what we have reserved must be seen by all before we look at theirs.
            fence()
            total = self._total()
        if total <= limit:
            return None
        self._row.reserve(-1)
        fence()
        if self._total() < limit:
            # Several have reserved the last place at once.
            return CONTENTION_DELAY
        self.why = AT_LIMIT
        if self._looking is None:
            self._look_later()
        return UNTIL_CAPACITY

    def _has_descriptors(self) -> bool:
        try:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        except OSError:
            # Some sandboxes refuse it. `accept` itself tells when no descriptor is left.
            return True
        self._capacity = 2**31 if soft == resource.RLIM_INFINITY else max(1, soft - self._held - RESERVE)
        return self._row[WorkerStat.OPEN] < self._capacity

    # --- what became of it --------------------------------------------------------------------------------------------

    def took(self, address: object) -> tuple[str, bytes | None]:
        self._steps_back = 0
        self._look_after = SOON
        self._row.accepted(fairness.next_share(self._row[WorkerStat.ASSIGNED], self._least_share))
        refusal, peer = self._judge(address)
        if refusal:
            self._row.reserve(-1)
            self._row.refused()
        return refusal, peer

    def _judge(self, address: object) -> tuple[str, bytes | None]:
        notices = self._scoreboard.settings
        if self._ending and self._row[WorkerStat.OPEN] > self._capacity and not self._has_descriptors():
            return AT_DESCRIPTORS, None
        limit = notices[FleetSetting.MAX_CONNECTIONS]
        if limit and self._refuses and self._total() > limit:
            return AT_LIMIT, None
        limit = notices[FleetSetting.MAX_PER_PEER]
        peer = peer_key(address) if limit else None
        if peer is None:
            return "", None
        key = self._key(peer)
        if not self._peers.add(key, 1):
            return UNCOUNTED, None
        # Two of one peer that are taken by two workers at once: both are counted before either looks.
        fence()
        self._look_around()
        if self._peers.get(key) + sum(table.get(key) for table in self._tables) > limit:
            self._peers.add(key, -1)
            return AT_PEERS_LIMIT, None
        return "", peer

    def ended(self, peer: bytes | None) -> None:
        self._row.reserve(-1)
        if peer is not None:
            self._peers.add(self._key(peer), -1)
        # Our own server hears of this.
        self._stop_looking()

    # --- places -------------------------------------------------------------------------------------------------------

    def on_room(self, resume: Callable[[], None]) -> None:
        self._resume = resume

    def close(self) -> None:
        self._stop_looking()
        self._resume = None

    def _look_later(self) -> None:
        self._looking = self._loop.call_later(self._look_after, self._look)
        self._look_after = min(2 * self._look_after, SELDOM)

    def _look(self) -> None:
        limit = self._scoreboard.settings[FleetSetting.MAX_CONNECTIONS]
        if limit and self._total() >= limit:
            self._look_later()
            return
        self._looking = None
        if self._resume is not None:
            self._resume()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    # --- the others ---------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Who there is, when that has changed."""
        version = self._scoreboard.settings[FleetSetting.VERSION]
        if version != self._version:
            self._version = version
            accepting, others = self._scoreboard.published()
            own = self._row.number
            self._siblings = [self._scoreboard.row(number) for number in accepting if number != own]
            self._all = self._siblings + [self._scoreboard.row(number) for number in others if number != own]
            self._tables = [row.peers() for row in self._all]

    def _loads(self) -> dict[int, fairness.Load]:
        """Those siblings that accept, and are not known to be busy."""
        self._look_around()
        siblings = self._siblings
        if len(siblings) > MAX_SIBLINGS:
            self._turn = (self._turn + MAX_SIBLINGS) % len(siblings)
            siblings = (siblings + siblings)[self._turn : self._turn + MAX_SIBLINGS]
        loads = self._scoreboard.loads(siblings)
        if self._absent:
            for number, load in list(self._absent.items()):
                if loads.get(number) == load:
                    del loads[number]
                else:
                    del self._absent[number]
        self._least_share = min((share for _, share in loads.values()), default=None)
        return loads

    def _total(self) -> int:
        self._look_around()
        return self._row[WorkerStat.OPEN] + sum(row.open for row in self._all)

    def _key(self, peer: bytes) -> int:
        # Python's hash of bytes is keyed (SipHash), and the same in all workers, which are forked from one process.
        return (hash(self._secret + peer) & (2**62 - 1)) or 1
