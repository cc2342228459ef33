"""`fork_processes`: continue the caller's program in several child processes, and restart those that fail.

The parent's loop lives here: no event loop, no thread. See system/processes.py for fork, signal and reap, and
system/forksafety.py for what makes a fork unsafe.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from ..events import ChildExited, ChildFailed, ForkDelayed, log
from ..system import forksafety
from ..system.child import Child, ExitStatus
from ..system.forked_fleet import ForkedFleet, set_fleet
from ..system.parent_death import Lifeline, die_with_parent
from ..system.processes import REAP_INTERVAL, RESOURCE_ERRNOS, System
from ..system.signals import SignalQueue, block_signals, unblock_signals
from ..system.worker_info import describe_role, set_task_id
from .polling import wait

DEFAULT_MAX_RESTARTS = 100
#: Seconds between SIGTERM and SIGKILL for the children of a parent that gives up.
STOP_TIMEOUT = 5.0
#: Seconds until a failed fork is tried again, doubled with each failure from the first value to the second.
MIN_RETRY, MAX_RETRY = 0.05, 1.0
_FORWARDED = (signal.SIGTERM, signal.SIGINT)

#: In a child. Never closed: the end of the parent is seen through it for as long as the child lives.
_lifeline: Lifeline | None = None


def fork_processes(num_processes: int | None, max_restarts: int | None = DEFAULT_MAX_RESTARTS) -> int:
    """Continue the caller in `num_processes` children, and return in each its task id, from 0.

    None or <= 0 means one per usable CPU (`cpu_count()`). The parent never returns. A child that exits non-zero or by a
    signal is forked again, at once and with the same id, with a warning to the logger `prefork`. Exit status 0 is not
    restarted. SIGTERM and SIGINT are forwarded, after which nothing is restarted. If the parent dies, the kernel kills
    the children (Linux).

    A child has the signal handling that a new Python process has: set handlers after this call. Its `random` is
    reseeded. It shares everything that the parent had opened, so bind sockets before this call and open all else after.

    Raises, in the parent:
    * SystemExit when the children are gone: 0 when each ended with status 0 or by the forwarded signal, otherwise 1.
    * RuntimeError("Too many child restarts, giving up") after more than `max_restarts` restarts in all (None: 100). The
      remaining children got SIGTERM and, five seconds later, SIGKILL; none is left.
    * RuntimeError, before any fork: in a thread other than the main one, in a child of an earlier call, in a worker of
      `prefork serve`, or when an event loop exists in this process.

    Warn with a RuntimeWarning that names other running threads (`-W error::RuntimeWarning` makes it an error).
    """
    role = describe_role()
    if role:
        raise RuntimeError(f"fork_processes: this process is already {role}")
    forksafety.refuse_unsafe_fork("fork_processes", stacklevel=3)
    if num_processes is None or num_processes <= 0:
        # Imported here because a caller that gives a number needs no reader of cgroup files.
        from ..system.cpus import cpu_count

        num_processes = cpu_count()
    fleet = _make_fleet(num_processes)
    parent = _Parent(System(), DEFAULT_MAX_RESTARTS if max_restarts is None else max_restarts, fleet)
    task = parent.run(num_processes)
    if task is None:
        sys.exit(parent.exit_code)
    _prepare_child(task, parent)
    return task


def _make_fleet(count: int) -> ForkedFleet | None:
    """Return what the children share to accept evenly; None if the system has no room for it."""
    with contextlib.suppress(OSError):
        return ForkedFleet.of(count)
    return None


def _prepare_child(task: int, parent: _Parent) -> None:
    """Make the new child `task` ready for the caller's code. Its last step unblocks signals."""
    global _lifeline
    # SIGKILL, because the caller's code may block or catch every other signal, and runs no loop that could watch a
    # pipe. The kernel sends it by either of two ways, within microseconds. The first works where the second cannot be
    # armed (no /proc). The second works after the child has changed its user, which clears the first.
    die_with_parent(parent.pid, signal.SIGKILL)
    if parent.lifeline.arm(signal.SIGKILL):
        _lifeline = parent.lifeline
    else:
        parent.lifeline.close()
    _reseed_random()
    set_task_id(task)
    if parent.fleet is not None:
        set_fleet(parent.fleet, task)
    unblock_signals()


def _reseed_random() -> None:
    # CPython reseeds by itself; another implementation may not. `secrets`, `uuid4` and `os.urandom` ask the kernel, and
    # OpenSSL 1.1.1 and later notice a fork. Instances of `random.Random` and numpy's generators are left to the caller.
    random = sys.modules.get("random")
    if random is not None:
        random.seed()


class _Parent:
    """The parent's side: the running children, the tasks to be forked, and whether it is stopping."""

    def __init__(self, system: System, max_restarts: int, fleet: ForkedFleet | None) -> None:
        self.pid = os.getpid()
        self.fleet = fleet
        self.exit_code = 0
        self._signals = SignalQueue(_FORWARDED)
        try:
            self.lifeline = system.lifeline()
        except OSError:
            self._signals.release()
            raise
        system.close_in_child(*self._signals.descriptors())
        self._system = system
        self._restarts_left = max_restarts
        self._children: dict[int, Child] = {}
        self._to_fork: list[int] = []
        self._retry_at = 0.0
        self._retry_delay = MIN_RETRY
        self._forwarded: set[int] = set()
        """Signals that were forwarded. Not empty means stopping."""

    def run(self, count: int) -> int | None:
        """Return the task id in a child; None in the parent, once all children are gone."""
        self._to_fork = list(range(count))
        try:
            while self._children or self._to_fork:
                task = self._fork_next()
                if task is not None:
                    return task
                self._wait(self._retry_at if self._to_fork else None)
                self._forward_signals()
                for ended in self._reap():
                    self._on_exit(*ended)
        except BaseException:
            if os.getpid() == self.pid:
                self._stop_all()
                self._release()
            raise
        self._release()
        return None

    def _release(self) -> None:
        self.lifeline.close()
        self._signals.release()
        if self.fleet is not None:
            self.fleet.inboxes.close()
            self.fleet.scoreboard.close()

    def _fork_next(self) -> int | None:
        while self._to_fork and self._system.monotonic() >= self._retry_at:
            task = self._to_fork[0]
            if self.fleet is not None:
                self.fleet.scoreboard.clear(task + 1)
            try:
                child = self._system.fork()
            except OSError as exc:
                if exc.errno not in RESOURCE_ERRNOS:
                    raise
                self._postpone(task, exc)
                return None
            if child is None:
                return task
            self._to_fork.pop(0)
            self._children[task] = child
            self._retry_delay = MIN_RETRY
        return None

    def _postpone(self, task: int, exc: OSError) -> None:
        if self._retry_delay == MIN_RETRY:  # one line for the whole shortage
            log(ForkDelayed(task, os.strerror(exc.errno or 0).lower()))
        self._retry_at = self._system.monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, MAX_RETRY)

    def _wait(self, due: float | None) -> None:
        """Wait until a child has ended, a signal has come, or the time is `due`."""
        now = self._system.monotonic()
        pidfds = [child.fileno() for child in self._children.values() if child.pollable]
        descriptors = [*pidfds, *(each.fileno() for each in self._signals.readable())]
        reap_at = now + REAP_INTERVAL if len(pidfds) < len(self._children) else None
        try:
            wait(dict.fromkeys(descriptors, select.POLLIN), [due, reap_at], now)
        except OSError:
            # No memory, or more descriptors than the limit is by now. The callers check everything without blocking.
            self._system.sleep(REAP_INTERVAL)

    def _forward_signals(self) -> None:
        for sig, from_terminal in self._signals.read():
            self._forwarded.add(sig)
            self._to_fork.clear()
            for child in self._children.values():
                # Ctrl-C has reached every process of the group already. Sent again, asyncio would cancel at once what
                # the first one let finish.
                if not (from_terminal and child.group() == os.getpgrp()):
                    child.signal(sig)

    def _reap(self) -> list[tuple[int, int, ExitStatus]]:
        """Return task id, pid and status of each child that has ended."""
        ended = []
        for task, child in list(self._children.items()):
            status = child.reap()
            if status is not None:
                del self._children[task]
                child.close()
                ended.append((task, child.pid, status))
        return ended

    def _on_exit(self, task: int, pid: int, status: ExitStatus) -> None:
        how = _describe(status)
        if status.clean or status.signal in self._forwarded:
            log(ChildExited(task, pid, how))
        elif self._forwarded:
            log(ChildFailed(task, pid, how, "not restarting: the parent is stopping"))
            self.exit_code = 1
        elif self._restarts_left <= 0:
            log(ChildFailed(task, pid, how, "not restarting: the limit is reached (max_restarts)"))
            raise RuntimeError("Too many child restarts, giving up")
        else:
            log(ChildFailed(task, pid, how, "restarting"))
            self._restarts_left -= 1
            self._to_fork.append(task)

    def _stop_all(self) -> None:
        """Leave no child behind: send SIGTERM, then SIGKILL to those that are left after STOP_TIMEOUT."""
        with block_signals():  # otherwise a handler of the caller's could raise in the middle of this
            for child in self._children.values():
                child.signal(signal.SIGTERM)
            deadline = self._system.monotonic() + STOP_TIMEOUT
            while self._children and self._system.monotonic() < deadline:
                self._wait(deadline)
                self._signals.read()
                self._reap()
            for child in self._children.values():
                child.signal(signal.SIGKILL)
                child.wait()
            self._reap()


def _describe(status: ExitStatus) -> str:
    """Return how a child ended in Tornado's words, which log watchers may look for."""
    if status.signal is not None:
        return f"killed by signal {status.signal}{' (core dumped)' if status.core else ''}"
    if status.clean:
        return "exited normally"
    return "exited with an unknown status" if status.code is None else f"exited with status {status.code}"
