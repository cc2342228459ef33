"""The end of a worker that runs a program: stop accepting, wait for the connections, then tell the program.

It runs in a thread, because the program has the main thread, with or without an event loop. What the program set for
SIGTERM is what it set, and is called last: many a handler ends its process at once.

What this takes of `time`, `select` and `_thread` is taken before the program runs, because it may replace it by what
needs the main thread (gevent).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import socket
import threading
from _thread import start_new_thread
from collections.abc import Callable
from select import POLLIN, poll
from time import monotonic, sleep

from ..core.messages import StoppedAcceptingMessage, encode
from ..core.time_limits import worker_exit_timeout
from ..errors import ExitCode
from ..events import ProgramStuck, ProgramTold
from ..system.processes import System
from ..system.scoreboard import FleetSetting, WorkerStat, fence
from ..system.signals import BLOCKABLE
from ..worker.lease import end_leases
from . import epolls
from .host import Host, Serving
from .quiet import is_new, is_quiet
from .serving import bound_elsewhere, raw_shutdown
from .stage import Stage

#: Seconds between looks at what is left.
INTERVAL = 0.02
#: Seconds that a loop has to stop accepting; one that is blocked for longer is left behind.
LOOP_TIMEOUT = 2.0
#: Seconds in which the accept queues are emptied when the server stops: a stream of new connections never ends.
EMPTYING_TIMEOUT = 1.0
#: Seconds in which every connection has to be quiet, so that a program may be told whose handler might cut them off.
QUIET_TIME = 0.3
#: Seconds in which the first request of each connection is waited for, before an orderly program is told: at most, and
#: at least.
NEW_TIME = 1.0
FIRST_TIME = 0.3
#: Packages whose handlers end a process in an orderly way: they are told at once, and close idle connections.
_ORDERLY = frozenset({"aiohttp", "grpclib", "gunicorn", "hypercorn", "sanic", "uvicorn"})


class Draining:
    """Ends one worker, once, when `begin` is called: from a signal handler, or from any thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.begun = False
        self._main = threading.main_thread().ident
        self._began = 0.0
        self._empty_since: float | None = None
        """When it was first seen that no connection is left."""
        self.told = threading.Event()
        """Set once the program was told to end."""

    def begin(self) -> None:
        """Begin to drain in a thread, unless that has begun (idempotent)."""
        if not self.begun and self._host.stage is not Stage.CHILD:
            self.begun = True
            start_new_thread(self._drain, ())

    def _drain(self) -> None:
        # Signals are for the program's threads.
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
        self._began = monotonic()
        context = self._host.context
        end_leases()
        self._stop_accepting()
        self._wait_for_connections()
        left = self._host.connections()
        context.emit(ProgramTold(monotonic() - self._began, left))
        if monotonic() >= self._deadline():
            self._abort()
        self._tell()
        # The main thread ends the process, unless the program does not let it.
        self._wait_until(lambda: monotonic() >= self._end_by())
        self._abort()
        timeout = worker_exit_timeout(context.config.settings.stop_timeout)
        self._wait_until(lambda: False, timeout)
        context.emit(ProgramStuck(timeout))
        os._exit(ExitCode.OK)

    def _deadline(self) -> float:
        """Return when the connections are aborted; `inf` is never. The supervisor may bring it forward at any time."""
        host = self._host
        until = host.context.fork.scoreboard.drain_deadline(host.row.number)
        return self._began + host.context.config.settings.drain_timeout if until is None else until

    def _end_by(self) -> float:
        """Return when a program that was told has to have ended: at the deadline. Without one, it has the drain timeout
        after its last connection."""
        deadline = self._deadline()
        if math.isinf(deadline) and not self._host.connections():
            self._empty_since = self._empty_since or monotonic()
            deadline = self._empty_since + self._host.context.config.settings.drain_timeout
        return deadline

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _stop_accepting(self) -> None:
        host = self._host
        stopping = bool(host.context.fork.scoreboard.settings[FleetSetting.STOPPING])
        if stopping and host.listeners:
            host.stage = Stage.EMPTYING
            self._wait_until(lambda: not _readable(host.listeners), EMPTYING_TIMEOUT)
        for loop, serving in list(host.loops.items()):
            done = threading.Event()
            # RuntimeError: the loop is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_stop, serving, done)
                done.wait(LOOP_TIMEOUT)
        host.row[WorkerStat.STOPPED] = 1
        fence()
        if host.stage is Stage.EMPTYING and host.context.fork.scoreboard.all_stopped(host.row):
            self._shut_down()
        host.stage = Stage.STOPPED
        epolls.silence(host.listeners)
        with contextlib.suppress(OSError):
            os.write(host.context.fork.status.fileno(), encode(StoppedAcceptingMessage()))

    def _shut_down(self) -> None:
        """Have the kernel refuse connections at the moment at which none waits, because this is the last worker."""
        host = self._host
        if host.context.fork.scoreboard.settings[FleetSetting.LISTENERS_SHARED]:
            return
        elsewhere = bound_elsewhere(host)
        self._wait_until(lambda: not _readable(host.listeners), EMPTYING_TIMEOUT)
        # Before accept(2) fails: the program would take EINVAL for an error of its own.
        host.stage = Stage.STOPPED
        for fd in list(host.listeners):
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_ino not in elsewhere:
                    raw_shutdown(fd)

    # --- connections --------------------------------------------------------------------------------------------------

    def _wait_for_connections(self) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        told_at_once = _is_orderly(self._host.loop_handler or handler)
        ends_by_term = callable(handler) or self._awaits_term()
        quiet_since: float | None = None
        began = monotonic()

        def may_end() -> bool:
            nonlocal quiet_since
            if not self._host.connections():
                return True
            if told_at_once:
                # It closes what it takes for idle: also a connection whose first request is still on its way. With TLS
                # the kernel has seen bytes then, so each connection has a moment.
                passed = monotonic() - began
                return passed >= NEW_TIME or (passed >= FIRST_TIME and not any(map(is_new, self._descriptors())))
            if not ends_by_term:
                return False
            # Whatever the handler does, it interrupts nothing then. Connections of our own servers cannot be asked.
            now = monotonic()
            quiet_since = (quiet_since or now) if self._all_quiet() else None
            return quiet_since is not None and now - quiet_since >= QUIET_TIME

        self._wait_until(lambda: may_end() or monotonic() >= self._deadline())

    def _all_quiet(self) -> bool:
        return all(map(is_quiet, self._descriptors()))

    def _descriptors(self) -> list[int]:
        """Return the descriptors of the open connections."""
        return [*self._host.tracked(), *(fd for each in list(self._host.loops.values()) for fd in each.descriptors())]

    def _wait_until(self, condition: Callable[[], bool], seconds: float = math.inf) -> None:
        until = monotonic() + seconds
        while not condition() and monotonic() < until:
            sleep(INTERVAL)

    def _abort(self) -> None:
        """Cut off what is left at the drain timeout: a program that waits for its connections would never end."""
        for loop, serving in list(self._host.loops.items()):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(serving.abort)
        for fd in self._host.tracked():
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as sock:
                sock.shutdown(socket.SHUT_RDWR)

    # --- the program --------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Have the program end as it would without prefork: by its handler for SIGTERM, or by KeyboardInterrupt."""
        self.told.set()
        if self._awaits_term():
            # For whichever thread waits.
            System().signal_own_process(signal.SIGTERM)
        elif self._main is not None:
            number = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(self._main, number)

    def _awaits_term(self) -> bool:
        """Return whether the program has blocked SIGTERM, because a thread of it waits for that in sigwait(3)."""
        return signal.SIGTERM in self._host.awaited or _is_blocked(signal.SIGTERM)


def _is_blocked(number: int) -> bool:
    """Return whether the main thread has blocked a signal (proc(5), SigBlk)."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/self/task/{os.getpid()}/status", encoding="ascii") as file,
    ):
        for line in file:
            if line.startswith("SigBlk:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _stop(serving: Serving, done: threading.Event) -> None:
    try:
        serving.stop_accepting()
    finally:
        done.set()


def _is_orderly(handler: object) -> bool:
    """Return whether a handler is known to let connections end."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return (getattr(handler, "__module__", None) or "").partition(".")[0] in _ORDERLY


def _readable(descriptors: set[int]) -> bool:
    watch = poll()
    for fd in descriptors:
        watch.register(fd, POLLIN)
    return any(events & POLLIN for _, events in watch.poll(0))
