"""A child process as its parent sees it: a handle that signals and reaps it, and how it ended.

`processes.py` forks it. Nothing here decides which child is wanted, and nothing here uses an event loop.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

from .descriptors import Descriptor


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a child ended: by an exit `code`, by a `signal` (with or without a `core`), or unknown if both are None."""

    code: int | None
    signal: int | None = None
    core: bool = False

    @classmethod
    def from_status(cls, status: int) -> ExitStatus:
        """Decode what `waitpid` returns (wait(2)). Shifting the status would mistake a signal for an exit code."""
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status), os.WCOREDUMP(status))
        return cls(os.WEXITSTATUS(status))

    @classmethod
    def from_siginfo(cls, info: os.waitid_result) -> ExitStatus:
        """Decode what `waitid` returns (waitid(2))."""
        if info.si_code == os.CLD_EXITED:
            return cls(info.si_status)
        return cls(None, info.si_status, info.si_code == os.CLD_DUMPED)

    @property
    def clean(self) -> bool:
        return self.code == 0

    def describe(self) -> str:
        """Return "exit status 3", "signal 9 (SIGKILL)" or "signal 11 (SIGSEGV), core dumped"."""
        if self.signal is not None:
            return f"signal {self.signal}{_name(self.signal)}{', core dumped' if self.core else ''}"
        if self.code is not None:
            return f"exit status {self.code}"
        return "unknown status (other code in this process waited for it)"


def _name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal has no name
        return ""


class Child:
    """One child process, owned by the code that forked it, until `close`.

    If `pollable`, it is readable (`fileno`) once the process has ended. With a pidfd (Linux 5.4) neither `signal` nor
    `reap` can reach another process that was given the same pid. Without one they act only until the child is reaped.
    """

    __slots__ = ("__weakref__", "_leads_group", "_pidfd", "_status", "pid")

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self._pidfd = None if pidfd is None else Descriptor(pidfd)
        self._status: ExitStatus | None = None
        self._leads_group = False

    def __repr__(self) -> str:
        return f"<Child pid={self.pid} {self._status.describe() if self._status else 'running'}>"

    @property
    def pollable(self) -> bool:
        """Whether there is a pidfd to poll; without one, only SIGCHLD announces that a child has ended."""
        return self._pidfd is not None

    def fileno(self) -> int:
        """Return the pidfd. Raises ValueError if it is closed or there is none."""
        if self._pidfd is None:
            raise ValueError("no pidfd on this platform")
        return self._pidfd.fileno()

    def signal(self, sig: int) -> bool:
        """Send `sig`. Return False, and do nothing, if the child is reaped or closed, or must not be signalled."""
        if self._status is not None:
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
            # Some sandboxes refuse this call. The pid is the child's until it is reaped, so no other process is hit.
            os.kill(self.pid, sig)

    def lead_group(self) -> None:
        """Make the child lead a process group, and kill that group when the child has ended.

        The child makes the same call, so neither process has to wait for the other (setpgid(2)).
        """
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        self._leads_group = True

    def reap(self) -> ExitStatus | None:
        """Return how the child ended, or None while it runs. Never block, reap no other child; may be repeated."""
        if self._status is None:
            self._status = self._wait(os.WNOHANG)
        return self._status

    def wait(self) -> ExitStatus:
        """Block until the child ends, and return how. There is no deadline: send SIGKILL first."""
        if self._status is None:
            self._status = self._wait(0)
        assert self._status is not None
        return self._status

    def group(self) -> int | None:
        """Return the child's process group; None once it is gone."""
        try:
            return None if self._status is not None else os.getpgid(self.pid)
        except ProcessLookupError:
            return None

    def close(self) -> None:
        """Close the pidfd (idempotent). The process is neither signalled nor reaped."""
        if self._pidfd is not None:
            self._pidfd.close()

    def _wait(self, options: int) -> ExitStatus | None:
        try:
            if self._leads_group and not self._kill_group(options):
                return None
            if self._pidfd is None:
                pid, status = os.waitpid(self.pid, options)
                return ExitStatus.from_status(status) if pid else None
            info = os.waitid(os.P_PIDFD, self.fileno(), os.WEXITED | options)
        except ChildProcessError:  # other code's os.wait() reaped it, or SIGCHLD is ignored: it is gone all the same
            return ExitStatus(None)
        return ExitStatus.from_siginfo(info) if info is not None else None

    def _kill_group(self, options: int) -> bool:
        """Kill the rest of the group once the child has ended; return False while it runs.

        Do it before the child is reaped: until then no other process can get its pid, which is also the group's id.
        """
        which, number = (os.P_PID, self.pid) if self._pidfd is None else (os.P_PIDFD, self.fileno())
        if os.waitid(which, number, os.WEXITED | os.WNOWAIT | options) is None:
            return False
        # The group is empty, or a member has changed its user. All that can be killed has been.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return True
