"""A thread that looks once in a while at what no event loop tells: connections that a program accepts by itself.

It also checks the limits of recycling, for a program may have no loop. A hang is not seen here: a thread goes on while
the main one is blocked.
"""

from __future__ import annotations

import random
import threading
import time

from ..core.messages import RecycleMessage
from ..core.recycling import RecycleLimits
from ..events import HangTimeoutInapplicable
from ..system.memory import resident_bytes
from ..system.scoreboard import WorkerStat
from ..worker.main import send
from .host import Host

#: Seconds between two looks; longer if one took long, because there are many connections.
INTERVAL = 0.25
_SHARE = 50
#: Seconds after which a program that listens by itself is known to run no event loop.
_LOOP_EXPECTED = 2.0


class Watch:
    """Started at once if there are limits, otherwise with the first listen of the program itself (idempotent)."""

    def __init__(self, host: Host) -> None:
        self._host = host
        settings = host.context.config.settings
        limits = RecycleLimits(settings.max_connections_served, settings.max_worker_age, settings.max_worker_rss)
        self._limits = limits.with_jitter(random.random()) if limits else None
        self._started = time.monotonic()
        self._thread: threading.Thread | None = None
        if self._limits:
            self.start()

    def start(self) -> None:
        with self._host.lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefork-watch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        looked = False
        listened = time.monotonic()
        while True:
            began = time.monotonic()
            self._host.sweep()
            self._check_limits()
            if not looked and self._host.listeners and began - listened > _LOOP_EXPECTED:
                looked = True
                # Once in a fleet, not in each worker.
                if self._host.heartbeat is None and self._host.context.fork.slot == 0:
                    self._host.context.emit(HangTimeoutInapplicable())
            time.sleep(max(INTERVAL, (time.monotonic() - began) * _SHARE))

    def _check_limits(self) -> None:
        if self._limits is None:
            return
        rss = 0 if self._limits.rss is None else resident_bytes()
        age = time.monotonic() - self._started
        reason = self._limits.reached(self._host.row[WorkerStat.ACCEPTED], age, rss)
        if reason is not None:
            self._limits = None
            send(self._host.context, RecycleMessage(reason))
