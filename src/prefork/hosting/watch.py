"""A thread that looks once in a while at what no event loop tells: connections that a program accepts by itself.

It also checks the limits of recycling, and whether the supervisor wants this worker to end: the main thread may be
blocked where no signal handler of Python runs, as in sigwait(3). A hang is not seen here: a thread goes on while the
main one is blocked.
"""

from __future__ import annotations

import random
import signal
from _thread import start_new_thread
from collections.abc import Callable
from time import monotonic, sleep

from ..config import option_of
from ..core.messages import LimitTooLowMessage, RecycleMessage
from ..core.recycling import RecycleLimits
from ..events import HangTimeoutInapplicable, OptionsInapplicable
from ..system.memory import resident_bytes
from ..system.scoreboard import WorkerStat
from ..system.signals import BLOCKABLE
from ..worker.main import send
from .host import Host

#: Seconds between two looks; longer if one took long, because there are many connections.
INTERVAL = 0.1
_SHARE = 50
#: Seconds after which a program that listens by itself is known to run no event loop.
_LOOP_EXPECTED = 2.0
#: Limits that hold for servers on asyncio's and uvloop's loops only.
_OF_LOOPS = (
    *("max_connections", "max_connections_per_ip", "accept_rate"),
    *("first_byte_timeout", "idle_timeout", "max_age"),
)


class Watch:
    """Started at once if there are limits, otherwise with the first listen of the program itself (idempotent)."""

    def __init__(self, host: Host, drain: Callable[[], object]) -> None:
        self._host = host
        self._drain = drain
        self._accepted = False
        """The supervisor has counted this worker among those that accept."""
        settings = host.context.config.settings
        limits = RecycleLimits(settings.max_connections_served, settings.max_worker_age, settings.max_worker_rss)
        self._limits = limits.with_jitter(random.random()) if limits else None
        self._measured = False
        """Whether the memory was looked at when the program began to listen."""
        self._started = monotonic()
        self._running = False
        if self._limits:
            self.start()

    def start(self) -> None:
        with self._host.lock:
            if not self._running:
                self._running = True
                start_new_thread(self._run, ())

    def _run(self) -> None:
        # Signals are for the program's threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
        looked = False
        listened = monotonic()
        while True:
            began = monotonic()
            self._host.sweep()
            self._check_limits()
            self._check_end()
            if not looked and self._host.listeners and began - listened > _LOOP_EXPECTED:
                looked = True
                if self._host.reads_headers:
                    # It waits for a connection, which it would accept itself.
                    self._host.refuse_own_accepting()
                self._warn()
            sleep(max(INTERVAL, (monotonic() - began) * _SHARE))

    def _warn(self) -> None:
        """Say what does not apply to a program that accepts itself; once in a fleet, and not in each worker."""
        context = self._host.context
        if context.fork.slot != 0:
            return
        if self._host.heartbeat is None:
            context.emit(HangTimeoutInapplicable())
        limits = context.config.settings.limits
        given = [option_of(name) for name in _OF_LOOPS if getattr(limits, name) is not None]
        if given and not self._host.loops:
            context.emit(OptionsInapplicable(", ".join(given)))

    def _check_end(self) -> None:
        accepting, others = self._host.context.fork.scoreboard.published()
        number = self._host.row.number
        self._accepted = self._accepted or number in accepting
        if self._accepted and number in others:
            self._drain()

    def _check_limits(self) -> None:
        if self._limits is None:
            return
        rss = self._measure(self._limits.rss)
        age = monotonic() - self._started
        reason = self._limits.reached(self._host.row[WorkerStat.ACCEPTED], age, rss)
        if reason is not None:
            self._limits = None
            send(self._host.context, RecycleMessage(reason))

    def _measure(self, limit: int | None) -> int:
        """Return the resident bytes; 0 while the program does not listen yet, and if it is beyond `limit` when it does,
        which would recycle each worker for ever."""
        if limit is None or self._limits is None or not (self._host.listeners or self._host.loops):
            return 0
        rss = resident_bytes()
        if not self._measured and rss >= limit:
            self._limits = self._limits.without_rss()
            send(self._host.context, LimitTooLowMessage(rss, limit))
            rss = 0
        self._measured = True
        return rss
