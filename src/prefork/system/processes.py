"""Processes: the one place where prefork forks, signals and waits.

Everything that makes, kills or reaps a process goes through `System` and `Child`, so that a test can put something else
in their place. Signals are in `signals.py`, and how a child notices its parent's death in `orphans.py`; their names are
passed on from here. Which child is wanted, and when, is decided elsewhere; no event loop appears here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ..errors import ExitCode, place_of, reason_of
from .descriptors import Closeable, Descriptor
from .parent_death import Lifeline, die_with_parent, load_prctl
from .signals import BLOCKABLE, block_signals, restore_default_signals, unblock_signals

__all__ = [
    "Child",
    "Closeable",
    "Descriptor",
    "ExitStatus",
    "Lifeline",
    "System",
    "block_signals",
    "die_with_parent",
    "restore_default_signals",
    "unblock_signals",
]

#: errno where the system is short of something that may be there again in a moment (fork(2), accept(2)).
RESOURCE_ERRNOS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
#: Without pidfds only SIGCHLD tells of a child's end, and it can get lost: look so often at least, in seconds.
REAP_INTERVAL = 0.5
#: Orphans reaped at once, so that a storm of them does not hold up the rest.
STRANGERS = 256

# --- how a process ended ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a child ended: by an exit `code`, by a `signal` (with or without a `core`), or unknown when both are None."""

    code: int | None
    signal: int | None = None
    core: bool = False

    @classmethod
    def from_status(cls, status: int) -> ExitStatus:
        """From what `waitpid` gives (wait(2)): not the exit code shifted, which mistakes a signal for a status."""
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status), os.WCOREDUMP(status))
        return cls(os.WEXITSTATUS(status))

    @classmethod
    def from_siginfo(cls, info: os.waitid_result) -> ExitStatus:
        """From what `waitid` gives."""
        if info.si_code == os.CLD_EXITED:
            return cls(info.si_status)
        return cls(None, info.si_status, info.si_code == os.CLD_DUMPED)

    @property
    def clean(self) -> bool:
        """True for exit status 0."""
        return self.code == 0

    def describe(self) -> str:
        """For people: "exit status 3", "signal 9 (SIGKILL)", "signal 11 (SIGSEGV), core dumped"."""
        if self.signal is not None:
            return f"signal {self.signal}{_name(self.signal)}{', core dumped' if self.core else ''}"
        if self.code is not None:
            return f"exit status {self.code}"
        return "unknown status (other code in this process waited for it)"


def _name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has a number only
        return ""


# --- a child, seen from its parent ------------------------------------------------------------------------------------


class Child:
    """One child process, owned by whoever forked it, until `close`.

    Readable (`fileno`) once the process has ended, where `pollable`. With a pidfd (Linux 5.4) neither `signal` nor
    `reap` can meet another process that was given the same pid; without, they act only while the child is not reaped.
    """

    __slots__ = ("__weakref__", "_death", "_leads", "_pidfd", "pid")

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self._pidfd = None if pidfd is None else Descriptor(pidfd)
        self._death: ExitStatus | None = None
        self._leads = False

    def __repr__(self) -> str:
        return f"<Child pid={self.pid} {self._death.describe() if self._death else 'running'}>"

    @property
    def pollable(self) -> bool:
        """Whether `fileno` can be polled; without a pidfd, SIGCHLD is the only news of a child's end."""
        return self._pidfd is not None

    def fileno(self) -> int:
        """The pidfd. Raises ValueError when it is closed, or there is none."""
        if self._pidfd is None:
            raise ValueError("no pidfd on this platform")
        return self._pidfd.fileno()

    def signal(self, sig: int) -> bool:
        """Send `sig`. False, and nothing done, when the child is reaped or closed, or may not be signalled by us."""
        if self._death is not None:
            return False
        try:
            if self._pidfd is None:
                os.kill(self.pid, sig)
            else:
                self._signal_by_pidfd(sig)
        except (ProcessLookupError, PermissionError, ValueError):
            return False
        return True

    def _signal_by_pidfd(self, sig: int) -> None:
        try:
            signal.pidfd_send_signal(self.fileno(), sig)
        except (ProcessLookupError, PermissionError):
            raise
        except OSError:
            # A sandbox refuses it, say. The number is the child's until we reap it, so this hits no other process.
            os.kill(self.pid, sig)

    def lead_group(self) -> None:
        """Make it the leader of a process group, which is killed when the child has ended: what it has started goes
        with it. The child does the same, so neither has to wait for the other (setpgid(2))."""
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        self._leads = True

    def reap(self) -> ExitStatus | None:
        """How the child ended, or None while it runs. Never blocks, touches no other child, may be asked again."""
        if self._death is None:
            self._death = self._wait(os.WNOHANG)
        return self._death

    def wait(self) -> ExitStatus:
        """The same, and waits for it. Only for a child that was sent SIGKILL: there is no deadline."""
        if self._death is None:
            self._death = self._wait(0)
        assert self._death is not None
        return self._death

    def _end_group(self, options: int) -> bool:
        """Kill the rest of its group, once it has ended; False while it runs. Before it is reaped: until then its
        number, which is the group's, cannot be another one's."""
        which, number = (os.P_PID, self.pid) if self._pidfd is None else (os.P_PIDFD, self.fileno())
        if os.waitid(which, number, os.WEXITED | os.WNOWAIT | options) is None:
            return False
        # Gone, or a member is another user's by now (it has changed it): what can be killed has been.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return True

    def group(self) -> int | None:
        """Its process group; None once it is gone."""
        try:
            return None if self._death is not None else os.getpgid(self.pid)
        except ProcessLookupError:
            return None

    def close(self) -> None:
        """Close the pidfd (idempotent). The process is neither signalled nor reaped."""
        if self._pidfd is not None:
            self._pidfd.close()

    def _wait(self, options: int) -> ExitStatus | None:
        try:
            if self._leads and not self._end_group(options):
                return None
            if self._pidfd is None:
                pid, status = os.waitpid(self.pid, options)
                return ExitStatus.from_status(status) if pid else None
            info = os.waitid(os.P_PIDFD, self.fileno(), os.WEXITED | options)
        except ChildProcessError:  # somebody's os.wait() took it, or SIGCHLD is ignored: it is gone all the same
            return ExitStatus(None)
        return ExitStatus.from_siginfo(info) if info is not None else None


# --- the seam ---------------------------------------------------------------------------------------------------------


class System:
    """The system calls on processes, as an object that a test can replace. One per parent process."""

    def __init__(self) -> None:
        self._private: weakref.WeakSet[Closeable] = weakref.WeakSet()

    def monotonic(self) -> float:
        """Seconds on the monotonic clock."""
        return time.monotonic()

    def rest(self, seconds: float) -> None:
        """Do nothing: a failure is not to be met by spinning."""
        time.sleep(seconds)

    def exit(self, code: int) -> NoReturn:
        """End this process now, as a forked child must: no atexit handler or finalizer of the parent's runs twice."""
        _flush_standard_streams()
        os._exit(code)

    def close_in_child(self, *things: Closeable) -> None:
        """Name what belongs to this process alone; `fork` closes it in every child. Held weakly.

        A sibling that holds the other end of a pipe keeps its end of file from ever coming.
        """
        for thing in things:
            self._private.add(thing)

    def lifeline(self) -> Lifeline:
        """A pipe whose only writing end stays in this process, so that every child sees when it is gone."""
        line = Lifeline()
        self.close_in_child(line.writer)
        return line

    def fork(self) -> Child | None:
        """A new process: a `Child` in the parent, None in the child.

        The child starts with **all signals blocked**, the handlers of a freshly started Python, no wake-up descriptor,
        no timers, and without what `close_in_child` names or the pidfds of its siblings. It installs its own handlers,
        then calls `unblock_signals()`; a signal sent to it in the meantime waits and is not lost.

        Raises OSError (EAGAIN, ENOMEM, EMFILE ...) when there is no room for another process; nothing has changed then.
        """
        load_prctl()
        _flush_standard_streams()  # what waits in a buffer would be written by parent and child
        _heed_children()
        # The pidfd takes the place of this descriptor: a parent at its limit finds out before there is a child.
        reserve = Descriptor(os.open(os.devnull, os.O_RDONLY)) if _pidfd_works() else None
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        child = None
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
            pid = os.fork()
            if pid == 0:
                self._become_child(reserve)
                return None
            child = self._adopt(pid, reserve)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:
            # Also when a handler of the caller's raised (KeyboardInterrupt): no child may stay that nobody knows of.
            if child is not None:
                child.signal(signal.SIGKILL)
                child.wait()
                child.close()
            if reserve is not None:
                reserve.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
        return child

    def execute(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
        failed: Callable[[OSError], object],
    ) -> Child:
        """Another program as a child, which outlives this process. Of our descriptors it has the standard ones and
        `descriptors`, under their own numbers; signals are as a shell would have them. Raises OSError as `fork` does.

        `failed` is called in the child if the program cannot be executed; its exit status is 127 then.
        """
        child = self.fork()
        if child is not None:
            return child
        try:
            for fd in descriptors:
                os.set_inheritable(fd, True)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            unblock_signals()
            os.execve(command[0], list(command), dict(environment))
        except OSError as exc:
            failed(exc)
        finally:
            os._exit(127)

    def reap_adopted(self, ours: Collection[int]) -> None:
        """Reap the dead children that are not in `ours`: as process 1, orphans of a whole container come to us.

        Not for any other process: it would take the exit statuses of children that somebody else here waits for.
        """
        for _ in range(STRANGERS):
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # One of ours is seen again and again until its owner has reaped it.
            if found is None or found.si_pid in ours:
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)

    def reap_orphans(self, pids: Collection[int]) -> None:
        """Take the exit statuses of these children, of those that have ended."""
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill_orphans(self, pids: Collection[int]) -> None:
        """Send SIGKILL to these children, which nobody else reaps: their numbers are theirs."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def end_own_group(self) -> NoReturn:
        """End this process, and with it its group, if it leads one."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(ExitCode.OK)

    def _adopt(self, pid: int, reserve: Descriptor | None) -> Child:
        pidfd = None
        if reserve is not None:
            reserve.close()
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                orphan = Child(pid, None)
                orphan.signal(signal.SIGKILL)
                orphan.wait()
                raise
        child = Child(pid, pidfd)
        self.close_in_child(child)
        return child

    def _become_child(self, reserve: Descriptor | None) -> None:
        try:
            restore_default_signals()
            for thing in [*self._private, *([reserve] if reserve else [])]:
                with contextlib.suppress(OSError):
                    thing.close()
            self._private.clear()
        except BaseException as exc:  # going on would run the parent's code twice
            if isinstance(exc, OSError | MemoryError):
                _say(f"prefork[{os.getpid()}]: a forked process cannot begin: {reason_of(exc)} (in {place_of(exc)})\n")
                os._exit(ExitCode.SERVICE)
            traceback.print_exc()
            os._exit(ExitCode.BUG)


@functools.cache
def _pidfd_works() -> bool:
    """Whether the kernel has pidfds that can be waited for (Linux 5.4; some sandboxes refuse them)."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        probe = Descriptor(os.pidfd_open(os.getpid()))
    except OSError as exc:
        if exc.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return False
    try:
        os.waitid(os.P_PIDFD, probe.fileno(), os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return True  # understood: we are not our own child
    except OSError:
        return False
    finally:
        probe.close()
    return False


def _heed_children() -> None:
    # An ignored SIGCHLD survives exec, and has the kernel reap the children itself: every status would be lost.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="backslashreplace"))


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or never there
            stream.flush()
