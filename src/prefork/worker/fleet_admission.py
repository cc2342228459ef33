"""The admission of a worker: limits over the whole fleet, and the loads of siblings, by the scoreboard, without a lock.

Fleet-wide limits hold exactly. A worker reserves a permit on its own row, then adds up all rows, and releases the
permit if the sum is above the limit. Two workers that reserve the last permit at once may both release theirs and try
again; never do both keep it. See core/dispatch.py for which worker serves. Sockets do not belong here.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable

from ..core.account import CloseReason
from ..core.count_table import CountTable
from ..core.dispatch import ASSIGNED_SLACK, Load, choose, next_assigned
from ..core.peers import peer_key
from ..core.token_bucket import TokenBucket
from ..net.admission import (
    AT_LIMIT,
    AT_PEER_LIMIT,
    GRANTED,
    OUT_OF_DESCRIPTORS,
    PEERS_FULL,
    SUSPENDED,
    Answer,
    Blocked,
    Peer,
    Refusal,
    RetryAfter,
)
from ..system.inboxes import CAPACITY, Inboxes
from ..system.scoreboard import FleetSetting, Row, Scoreboard, WorkerStat, fence

#: Descriptors that a worker keeps free of connections: for log files, certificates, what a handler opens.
RESERVED_DESCRIPTORS = 32
#: Siblings whose load is read for one accept. With more, each accept reads the next 32.
MAX_SIBLINGS = 32
#: Seconds between checks for capacity that another worker has released, doubled from the first value to the second.
MIN_CHECK, MAX_CHECK = 0.001, 0.032
#: Looks at all rows and inboxes until two in a row are the same, and what is assumed if none are: a full fleet.
MAX_LOOKS = 4
MANY = 2**62
#: Nanoseconds since the last heartbeat, of which there are four a second, after which nothing is passed to a worker.
UNRESPONSIVE_NS = 1_000_000_000
#: Seconds to back off when several workers have reserved the last permit at once.
CONTENTION_DELAY = 0.0005


class FleetAdmission:
    """Counts this worker's connections on its own `row` of `scoreboard`, against the limits of all workers together.

    `refuses`: at a limit accept and close connections, instead of leaving them in the accept queue. `slack` is how much
    the assigned counts of equal workers may differ.

    A worker that waits for capacity polls, less and less often. It is not told by a descriptor that all workers share,
    because any worker could fill it, flood it, or make it block (O_NONBLOCK belongs to the shared description).
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        row: Row,
        loop: asyncio.AbstractEventLoop,
        refuses: bool,
        inboxes: Inboxes | None = None,
        slack: int = ASSIGNED_SLACK,
    ) -> None:
        self._scoreboard = scoreboard
        self._row = row
        self._loop = loop
        self._refuses = refuses
        self._slack = slack
        self._inboxes = inboxes
        self._most_on_their_way = 0 if inboxes is None else CAPACITY * len(inboxes)
        self._forced = False
        """Nothing accepts after this worker: `commit` refuses what is beyond a limit."""
        self._peers = row.peers()
        self._secret = scoreboard.secret
        self._bucket = TokenBucket()
        self._resume: Callable[[], None] | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._check_interval = MIN_CHECK
        self._version = -1
        self._siblings: list[Row] = []
        """The workers that accept, but for this one."""
        self._accepting = 1
        """The number of workers that accept."""
        self._slots: dict[int, int] = {}
        """The slots of the workers that accept, by the number of the row."""
        self._others: list[Row] = []
        """The workers that have connections, but for this one: siblings, and those that do not accept."""
        self._tables: list[CountTable] = []
        self._first_sibling = 0
        self._open_at_start = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 16
        self._capacity = 0
        """Connections that the descriptor limit allows."""
        self._lowest_assigned: int | None = None
        """The lowest assigned count of the siblings at the last check; None: there are none."""
        # Start level with the siblings. At their median, because one of them could claim any number, and with a huge
        # one this worker would never be given a connection.
        assigned = sorted(count for _, count in self._loads().values())
        row[WorkerStat.ASSIGNED] = assigned[len(assigned) // 2] if assigned else 0

    # --- before an accept ---------------------------------------------------------------------------------------------

    def try_acquire(self, force: bool = False) -> Answer:
        row = self._row
        if force:
            self._refuses = self._forced = True
            row.reserve(1)
            return GRANTED
        if self._scoreboard.settings[FleetSetting.SUSPENDED]:
            # The supervisor logs it, once for all workers.
            return self._wait(Blocked(SUSPENDED, is_event=False))
        if not self.has_capacity():
            return Blocked(OUT_OF_DESCRIPTORS)
        if seconds := self._keep_rate():
            return RetryAfter(seconds)
        row.reserve(1)
        limit = self._scoreboard.settings[FleetSetting.MAX_CONNECTIONS]
        answer = self._keep_limit(limit) if limit and not self._refuses else GRANTED
        if answer is not GRANTED:
            self._bucket.refund()
        return answer

    def cancel(self) -> None:
        self._row.reserve(-1)
        self._bucket.refund()

    def _keep_rate(self) -> float:
        """Return the seconds to wait, so that each worker keeps its part of the accept rate."""
        rate = self._scoreboard.settings[FleetSetting.ACCEPT_RATE]
        if rate:
            self._update_rows()
        return self._bucket.take(rate / 1000 / max(1, self._accepting), self._loop.time()) if rate else 0.0

    def _keep_limit(self, limit: int) -> Answer:
        """Keep the permit that is reserved if the fleet is within `limit`, otherwise release it."""
        total = self._total()
        if total > limit - len(self._others) - 1 - self._most_on_their_way:
            # Near the limit this reservation must be visible to all workers before theirs are read.
            fence()
            total = self._total_with_inboxes()
        if total <= limit:
            return GRANTED
        self._row.reserve(-1)
        fence()
        if self._total_with_inboxes() < limit:
            return RetryAfter(CONTENTION_DELAY)
        return self._wait(Blocked(AT_LIMIT))

    def _wait(self, answer: Blocked) -> Blocked:
        """Look for capacity from time to time, and have accepting go on once there is some."""
        if self._check_timer is None:
            self._check_later()
        return answer

    def _has_descriptors(self) -> bool:
        try:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        except OSError:
            # Some sandboxes refuse it. accept(2) itself fails when no descriptor is left.
            return True
        unlimited = soft == resource.RLIM_INFINITY
        self._capacity = 2**31 if unlimited else max(1, soft - self._open_at_start - RESERVED_DESCRIPTORS)
        return self._row[WorkerStat.OPEN] < self._capacity

    # --- which worker serves ------------------------------------------------------------------------------------------

    def choose(self, waiting: Callable[[int], int | None], queue: Callable[[], int]) -> int | None:
        """Return the slot of the sibling that should serve the connection just accepted; None if this worker should.

        `waiting` returns the number of connections in the inbox of a slot; None if it can take no more. `queue` returns
        the length of the accept queue; it is called only when a sibling has less, because it costs a system call.
        """
        loads = self._loads()
        # Without the connection that is to be served: its permit is counted already.
        own = (self._row[WorkerStat.OPEN] - 1, self._row[WorkerStat.ASSIGNED])
        if choose(own, loads, self._slack) is None:
            return None
        # What is left in the queue is for all: a worker is not ahead if its part of it would make the others equal.
        part = queue() // (len(loads) + 1)
        own = (own[0] - part, own[1] - part)
        counted: set[int] = set()
        while (number := choose(own, loads, self._slack)) is not None:
            slot = self._slots.get(number)
            row = self._scoreboard.row(number)
            # Another generation may serve something else, or not by TLS.
            same = row[WorkerStat.GENERATION] == self._row[WorkerStat.GENERATION]
            if slot is None or not same or not self._is_responsive(row):
                del loads[number]
                continue
            queued = 0 if number in counted else waiting(slot)
            if queued is None:
                del loads[number]
                continue
            if not queued:
                return slot
            counted.add(number)
            open, assigned = loads[number]
            loads[number] = (open + queued, assigned + queued)
        return None

    def has_capacity(self) -> bool:
        """Return whether there are descriptors for one more connection, and tell the siblings."""
        has = self._row[WorkerStat.OPEN] < self._capacity or self._has_descriptors()
        if has == bool(self._row[WorkerStat.FULL]):
            self._row[WorkerStat.FULL] = not has
        return has

    def pass_on(self) -> None:
        """Release the permit of a connection that a sibling serves. Its token of the accept rate is spent."""
        self._row.reserve(-1)

    def accepts(self, slot: int) -> bool:
        """Return whether the worker of `slot` has not stopped, as far as its row tells."""
        rows = (self._scoreboard.row(number) for number, each in self._slots.items() if each == slot)
        return not any(row[WorkerStat.STOPPED] for row in rows)

    def responsive_slots(self) -> set[int]:
        """Return the slots whose workers accept and respond, without this one's."""
        self._update_rows()
        rows = {number: self._scoreboard.row(number) for number in self._slots}
        return {self._slots[number] for number, row in rows.items() if self._is_responsive(row)}

    def accepted_by(self, slot: int) -> int:
        """Return the number of connections that the worker of `slot` has accepted."""
        numbers = [number for number, each in self._slots.items() if each == slot]
        return sum(self._scoreboard.row(number)[WorkerStat.ACCEPTED] for number in numbers)

    def _is_responsive(self, row: Row) -> bool:
        age = time.monotonic_ns() - row[WorkerStat.HEARTBEAT]
        return 0 <= age < UNRESPONSIVE_NS and not row[WorkerStat.STOPPED] and not row[WorkerStat.FULL]

    # --- after an accept ----------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take a permit for a connection that a sibling has accepted, whatever the limits are."""
        self._row.reserve(1)

    def commit(self, address: object) -> Peer | Refusal:
        self._check_interval = MIN_CHECK
        if self._lowest_assigned is None or not self._row[WorkerStat.ACCEPTED] % 16:
            # Otherwise a worker that only gets connections from siblings would not see how far it lags.
            self._loads()
        self._row.accepted(next_assigned(self._row[WorkerStat.ASSIGNED], self._lowest_assigned))
        answer = self._count(address)
        if isinstance(answer, Refusal):
            self._row.reserve(-1)
        return answer

    def _count(self, address: object) -> Peer | Refusal:
        settings = self._scoreboard.settings
        if self._forced and self._row[WorkerStat.OPEN] > self._capacity and not self._has_descriptors():
            return Refusal(OUT_OF_DESCRIPTORS, CloseReason.DESCRIPTORS)
        limit = settings[FleetSetting.MAX_CONNECTIONS]
        if limit and self._refuses and self._total_with_inboxes() > limit:
            return Refusal(AT_LIMIT)
        return self._count_peer(address) if settings[FleetSetting.MAX_PER_PEER] else None

    def claim(self, address: object) -> Peer | Refusal:
        answer = self._count_peer(address)
        if isinstance(answer, Refusal):
            self._row.reserve(-1)
        return answer

    def _count_peer(self, address: object) -> Peer | Refusal:
        limit = self._scoreboard.settings[FleetSetting.MAX_PER_PEER]
        peer = peer_key(address) if limit else None
        if peer is None:
            return None
        key = self._key(peer)
        if not self._peers.add(key, 1):
            return Refusal(PEERS_FULL, CloseReason.MAX_CONNECTIONS_PER_IP)
        # Two workers may accept from one peer at once: each must count its own before it reads the other's.
        fence()
        self._update_rows()
        if self._peers.get(key) + sum(table.get(key) for table in self._tables) > limit:
            self._peers.add(key, -1)
            return Refusal(AT_PEER_LIMIT, CloseReason.MAX_CONNECTIONS_PER_IP)
        return peer

    def release(self, peer: Peer) -> None:
        self._row.reserve(-1)
        if peer is not None:
            self._peers.add(self._key(peer), -1)
        # The worker's own server resumes by itself.
        self._stop_checking()

    # --- capacity that other workers release --------------------------------------------------------------------------

    def on_capacity(self, resume: Callable[[], None]) -> None:
        self._resume = resume

    def close(self) -> None:
        self._stop_checking()
        self._resume = None

    def _check_later(self) -> None:
        self._check_timer = self._loop.call_later(self._check_interval, self._check)
        self._check_interval = min(2 * self._check_interval, MAX_CHECK)

    def _check(self) -> None:
        settings = self._scoreboard.settings
        limit = settings[FleetSetting.MAX_CONNECTIONS]
        if settings[FleetSetting.SUSPENDED] or (limit and self._total_with_inboxes() >= limit):
            self._check_later()
            return
        self._check_timer = None
        if self._resume is not None:
            self._resume()

    def _stop_checking(self) -> None:
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None

    # --- the other workers --------------------------------------------------------------------------------------------

    def _update_rows(self) -> None:
        version = self._scoreboard.settings[FleetSetting.VERSION]
        if version != self._version:
            self._version = version
            accepting, not_accepting = self._scoreboard.published()
            own = self._row.number
            siblings = [self._scoreboard.row(number) for number in accepting if number != own]
            self._others = siblings + [self._scoreboard.row(number) for number in not_accepting if number != own]
            self._tables = [row.peers() for row in self._others]
            self._accepting = len(accepting)
            # Each begins behind itself: otherwise all would choose the same one of several that are equal.
            self._siblings = sorted(siblings, key=lambda row: (row.number < own, row.number))
            self._slots = self._scoreboard.slots()

    def _loads(self) -> dict[int, Load]:
        """Return the loads of the siblings, or of MAX_SIBLINGS of them."""
        self._update_rows()
        siblings = self._siblings
        if len(siblings) > MAX_SIBLINGS:
            self._first_sibling = (self._first_sibling + MAX_SIBLINGS) % len(siblings)
            siblings = (siblings + siblings)[self._first_sibling : self._first_sibling + MAX_SIBLINGS]
        loads = self._scoreboard.loads(siblings)
        self._lowest_assigned = min((assigned for _, assigned in loads.values()), default=None)
        return loads

    def _total(self) -> int:
        self._update_rows()
        return self._row[WorkerStat.OPEN] + sum(row.open for row in self._others)

    # A connection that is passed on moves from its sender's row to an inbox, and then to its receiver's row. It is
    # in one of them at any moment: the sender gives up its permit after the send, and the receiver takes one before the
    # receive. A reader that looks at one after the other could still miss it; two looks that see the same did not.

    def _total_with_inboxes(self) -> int:
        """Return the number of all permits and of connections in inboxes; MANY if they move too fast to be counted."""
        before = self._look()
        for _ in range(MAX_LOOKS):
            now = self._look()
            if now == before:
                return sum(now)
            before = now
        return MANY

    def _look(self) -> list[int]:
        self._update_rows()
        rows = [self._row[WorkerStat.OPEN], *(row.open for row in self._others)]
        inboxes = self._inboxes
        return rows if inboxes is None else rows + [inboxes.waiting(slot) for slot in range(len(inboxes))]

    def _key(self, peer: bytes) -> int:
        # Python's hash of bytes is keyed (SipHash), and the same in all workers, which are forked from one process.
        return (hash(self._secret + peer) & (2**62 - 1)) or 1
