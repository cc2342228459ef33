"""`fork_processes` and `task_id`: the caller's own program, continued in several processes that are kept alive.

The parent stays in here until its children are gone, and its loop lives here too. How a process is forked, signalled
and reaped is in `system/processes.py`; what makes a fork unsafe is in `system/forksafety.py`. No event loop, no thread.
"""

from __future__ import annotations

import os
import select
import signal
import sys

from ..events import ChildExited, ChildFailed, Emit, ForkDelayed, log
from ..system import forksafety
from ..system.processes import (
    REAP_INTERVAL,
    RESOURCE_ERRNOS,
    Child,
    ExitStatus,
    Lifeline,
    System,
    block_signals,
    die_with_parent,
    unblock_signals,
)
from ..system.signals import SignalQueue

DEFAULT_MAX_RESTARTS = 100
#: Seconds that the children have between SIGTERM and SIGKILL when the parent gives up.
GRACE = 5.0
FIRST_RETRY, LONGEST_RETRY = 0.05, 1.0
_PASSED_ON = (signal.SIGTERM, signal.SIGINT)

# State of the process by its nature, set once, in a child. The lifeline must stay open for as long as the child lives.
_task_id: int | None = None
_lifeline: Lifeline | None = None


def task_id() -> int | None:
    """Which child of `fork_processes` this process is, from 0; None in any other process."""
    return _task_id


def fork_processes(num_processes: int | None, max_restarts: int | None = DEFAULT_MAX_RESTARTS) -> int:
    """Continue the caller in `num_processes` children: returns in each with its task id, 0 to n-1.

    None or <= 0 means one per usable CPU (`cpu_count()`). The parent never returns. A child that exits non-zero or by a
    signal is forked again, at once and with the same id, with a warning to the logger `prefork`; exit status 0 is not
    restarted. SIGTERM and SIGINT are passed on, after which nothing is restarted. If the parent dies, the kernel kills
    the children (Linux).

    A child has fresh signal handling, as Python starts with: set handlers after this call, not before. Its `random` is
    reseeded. It owns what the parent had opened before, so bind sockets first, and open all else afterwards.

    Raises, in the parent:
    * SystemExit when the children are gone: 0 when each ended with status 0 or by the signal that was passed on,
      otherwise 1.
    * RuntimeError("Too many child restarts, giving up") after more than `max_restarts` restarts in all (None: 100). The
      remaining children were sent SIGTERM and, after five seconds, SIGKILL; none is left.
    * RuntimeError, before any fork, in a thread other than the main one, in a child of an earlier call, or when an
      event loop exists in this process.

    Warns with a RuntimeWarning that names them when other threads are running (`-W error::RuntimeWarning` refuses).
    """
    if _task_id is not None:
        raise RuntimeError(f"fork_processes: this process is already child {_task_id} of an earlier call")
    forksafety.refuse_unsafe_fork("fork_processes", stacklevel=3)
    if num_processes is None or num_processes <= 0:
        # Imported here: reading cgroup files is of no use to who names a number.
        from ..system.cpus import cpu_count

        num_processes = cpu_count()
    parent = _Parent(System(), DEFAULT_MAX_RESTARTS if max_restarts is None else max_restarts)
    task = parent.run(num_processes)
    if task is None:
        sys.exit(parent.exit_code)
    _settle(task, parent)
    return task


def _settle(task: int, parent: _Parent) -> None:
    """Make the fresh child `task` ready for the caller's code; signals get through from the last line on."""
    global _task_id, _lifeline
    # SIGKILL, as the caller's code owns this process: it may block or catch all else, and has no loop of ours to watch
    # a pipe. The kernel does both, within microseconds: the first holds where the second cannot be armed (no /proc),
    # the second where the child changes its user, which clears the first.
    die_with_parent(parent.pid, signal.SIGKILL)
    if parent.lifeline.arm(signal.SIGKILL):
        _lifeline = parent.lifeline
    else:
        parent.lifeline.close()
    _reseed_random()
    _task_id = task
    unblock_signals()


def _reseed_random() -> None:
    # CPython does so by itself; another implementation may not. `secrets`, `uuid4` and `os.urandom` ask the kernel, and
    # OpenSSL notices a fork (1.1.1 and later). `random.Random()` objects and numpy's generators are their owner's.
    random = sys.modules.get("random")
    if random is not None:
        random.seed()


class _Parent:
    """The parent's side: which children run, which are to be forked, and whether it is stopping."""

    def __init__(self, system: System, max_restarts: int, emit: Emit = log) -> None:
        self.pid = os.getpid()
        self.exit_code = 0
        self._signals = SignalQueue(_PASSED_ON)
        try:
            self.lifeline = system.lifeline()
        except OSError:
            self._signals.release()
            raise
        system.close_in_child(*self._signals.descriptors())
        self._system = system
        self._emit = emit
        self._restarts_left = max_restarts
        self._children: dict[int, Child] = {}
        self._wanted: list[int] = []
        """Tasks to be forked, in this order."""
        self._retry_at = 0.0
        self._retry_delay = FIRST_RETRY
        self._passed_on: set[int] = set()
        """Signals that were passed on; not empty means stopping."""

    def run(self, count: int) -> int | None:
        """The task id in a child; None in the parent, once all children are gone."""
        self._wanted = list(range(count))
        try:
            while self._children or self._wanted:
                task = self._fork_wanted()
                if task is not None:
                    return task
                self._wait(self._timeout())
                self._pass_on()
                self._reap()
        except BaseException:
            if os.getpid() == self.pid:
                self._abandon()
                self._release()
            raise
        self._release()
        return None

    def _release(self) -> None:
        self.lifeline.close()
        self._signals.release()

    def _fork_wanted(self) -> int | None:
        while self._wanted and self._system.monotonic() >= self._retry_at:
            task = self._wanted[0]
            try:
                child = self._system.fork()
            except OSError as exc:
                if exc.errno not in RESOURCE_ERRNOS:
                    raise
                self._postpone(task, exc)
                return None
            if child is None:
                return task
            self._wanted.pop(0)
            self._children[task] = child
            self._retry_delay = FIRST_RETRY
        return None

    def _postpone(self, task: int, exc: OSError) -> None:
        if self._retry_delay == FIRST_RETRY:  # one line, however long it lasts
            self._emit(ForkDelayed(task, os.strerror(exc.errno or 0).lower()))
        self._retry_at = self._system.monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, LONGEST_RETRY)

    def _timeout(self) -> float | None:
        return max(0.0, self._retry_at - self._system.monotonic()) if self._wanted else None

    def _wait(self, timeout: float | None) -> None:
        """Until a child has ended, a signal has come, or `timeout` seconds are over."""
        poll = select.poll()
        for descriptor in self._signals.readable():
            poll.register(descriptor, select.POLLIN)
        for child in self._children.values():
            if child.pollable:
                poll.register(child, select.POLLIN)
            elif timeout is None or timeout > REAP_INTERVAL:
                timeout = REAP_INTERVAL
        try:
            # Rounded up, or the last millisecond would be spun away.
            poll.poll(None if timeout is None else int(timeout * 1000) + 1)
        except OSError:
            # No memory, or more descriptors than the limit is by now: the callers look at all of them, as none blocks.
            self._system.rest(REAP_INTERVAL)

    def _pass_on(self) -> None:
        for sig, from_terminal in self._signals.take():
            self._passed_on.add(sig)
            self._wanted.clear()
            for child in self._children.values():
                # Ctrl-C has reached every process of the group already; asyncio takes a second one as an order to drop
                # everything at once.
                if not (from_terminal and child.group() == os.getpgrp()):
                    child.signal(sig)

    def _reap(self) -> None:
        for task, child in list(self._children.items()):
            death = child.reap()
            if death is not None:
                del self._children[task]
                child.close()
                self._judge(task, child.pid, death)

    def _judge(self, task: int, pid: int, death: ExitStatus) -> None:
        """What follows from the end of one child."""
        how = death.describe()
        if death.clean or death.signal in self._passed_on:
            self._emit(ChildExited(task, pid, how))
        elif self._passed_on:
            self._emit(ChildFailed(task, pid, how, "not restarted, as the parent is stopping"))
            self.exit_code = 1
        elif self._restarts_left <= 0:
            self._emit(ChildFailed(task, pid, how, "not restarted, as the limit of restarts is reached"))
            raise RuntimeError("Too many child restarts, giving up")
        else:
            self._emit(ChildFailed(task, pid, how, "restarting it"))
            self._restarts_left -= 1
            self._wanted.append(task)

    def _abandon(self) -> None:
        """Leave no child behind: SIGTERM, then SIGKILL for those that are still there when the grace is over."""
        with block_signals():  # whatever handlers the caller has, none may raise in the middle of this
            for child in self._children.values():
                child.signal(signal.SIGTERM)
            deadline = self._system.monotonic() + GRACE
            while self._children and (left := deadline - self._system.monotonic()) > 0:
                self._wait(left)
                self._signals.take()
                self._bury()
            for child in self._children.values():
                child.signal(signal.SIGKILL)
                child.wait()
            self._bury()

    def _bury(self) -> None:
        for task, child in list(self._children.items()):
            if child.reap() is not None:
                del self._children[task]
                child.close()
