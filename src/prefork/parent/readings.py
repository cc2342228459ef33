"""What is read of the workers: their rows and counts, how long ago their loops turned, and claims that cannot be true.

Reads shared memory and /proc. What follows is decided elsewhere.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from ..core.account import Counters
from ..core.facts import Fact, HeartbeatsRead, RecycleRequested
from ..system.descriptors import count_descriptors
from ..system.processes import System
from ..system.scoreboard import FleetSetting, Row, Scoreboard, WorkerStat
from .accounts import Accounts
from .worker_process import WorkerProcess

#: Descriptors by which a worker's claim of connections may exceed what is counted a moment later.
CLAIM_SLACK = 64
#: Bytes of the services' own metrics that are passed on at a time: 64 KiB of 256 workers.
MAX_SERVICE_METRICS = 16 * 1024 * 1024


class Readings:
    """Reads the workers of `processes`, by id, which `workers.py` owns."""

    def __init__(
        self, processes: Mapping[int, WorkerProcess], scoreboard: Scoreboard, accounts: Accounts, system: System
    ) -> None:
        self._processes = processes
        self._scoreboard = scoreboard
        self._accounts = accounts
        self._system = system

    def rows(self) -> dict[int, Row]:
        return {process.worker_id: process.row for process in self._processes.values()}

    def open(self) -> int:
        """Return the number of open connections of all workers."""
        return sum(process.row.open for process in self._processes.values())

    def total(self) -> Counters:
        """Return the counts of the whole fleet since the start."""
        running = {process.worker_id: process.row.counters() for process in self._processes.values()}
        return sum(self.totals(running).values(), Counters())

    def arrivals(self) -> int:
        """Return how many connections were accepted since the start, without those that ended without a byte."""
        return self.total().arrivals

    def totals(self, running: Mapping[int, Counters]) -> dict[int, Counters]:
        """Return the counts of each slot since the start; `running` are those of the workers that run, by id."""
        return self._accounts.by_slot((self._processes[each].slot, counters) for each, counters in running.items())

    def cpu_by_slot(self, running: Mapping[int, float | None]) -> dict[int, float]:
        """Return the CPU seconds of each slot since the start; `running` are those of the workers that run, by id."""
        return self._accounts.cpu_by_slot((self._processes[each].slot, cpu or 0) for each, cpu in running.items())

    def service_metrics(self) -> dict[str, Any]:
        """Return the services' own metrics: of workers that are gone, and, unread, of those that run, with the slot."""
        running, room = [], MAX_SERVICE_METRICS
        for process in self._processes.values():
            data = process.row.read_service_metrics()
            room -= len(data)
            if data and room >= 0:
                running.append([process.slot, base64.b64encode(data).decode()])
        return {"gone": self._accounts.service_metrics.describe(), "running": running}

    def heartbeats(self) -> HeartbeatsRead:
        """Read how long ago each worker's loop last turned."""
        beats = {process.worker_id: process.row[WorkerStat.HEARTBEAT] for process in self._processes.values()}
        now = round(self._system.monotonic() * 1e9)
        # A heartbeat in the future was not written by a loop that turned.
        ages = {each: now - beat if beat <= now else now for each, beat in beats.items() if beat}
        return HeartbeatsRead({each: age / 1e9 for each, age in ages.items()})

    def overclaiming(self) -> list[Fact]:
        """Find workers that claim more connections than they have descriptors while the fleet is at its limit.

        The other workers may not accept what these claim.
        """
        limit = self._scoreboard.settings[FleetSetting.MAX_CONNECTIONS]
        claims = [(process, process.row.open) for process in self._processes.values()]
        if not limit or sum(claimed for _, claimed in claims) < limit:
            return []
        facts: list[Fact] = []
        for process, claimed in claims:
            open_fds = count_descriptors(process.child.pid)
            # Counted after the claim was read: some connections may have closed between, but not CLAIM_SLACK of them.
            if open_fds is not None and claimed > open_fds + CLAIM_SLACK:
                reason = f"it claims {claimed} connections, and has {open_fds} descriptors"
                facts.append(RecycleRequested(process.worker_id, reason))
        return facts
