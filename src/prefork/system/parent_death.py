"""Tell a child that its parent has exited, or have the kernel kill it then; also if it exited before the child asked.

The callers decide which child needs what. Nothing here forks or waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable

from ..errors import ExitCode
from .descriptors import Descriptor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@functools.cache
def load_prctl() -> Callable[..., int] | None:
    """Return libc's prctl, or None. The parent loads it before a fork, so that a child allocates little memory."""
    if sys.platform != "linux":
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    prctl.restype = ctypes.c_int
    return prctl


def die_with_parent(parent_pid: int, sig: int) -> None:
    """Have the kernel send `sig` to this process when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2)).

    `parent_pid` is the parent's `os.getpid()` from before the fork. If the parent has died since, exit at once. setuid
    and setgid clear the setting, so call this after them. Do nothing if there is no prctl.
    """
    prctl = load_prctl()
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    # Not "== 1", because the nearest subreaper adopts an orphan. 0: the parent is alive in an invisible pid namespace.
    if os.getppid() not in (parent_pid, 0):
        os._exit(ExitCode.OK)


def open_parent(parent_pid: int) -> Descriptor | None:
    """Return a descriptor that becomes readable when the parent exits (pidfd_open(2)); None if there is none.

    No other process can make it readable by writing. `parent_pid` is as in `die_with_parent`, and if the parent has
    died already, exit at once.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        pidfd = Descriptor(os.pidfd_open(parent_pid))
    except OSError:
        # There are no pidfds, or the parent is in an invisible pid namespace, or it is gone: the lifeline tells.
        return None
    found = os.getppid()
    if found == parent_pid:
        return pidfd
    # The pid was reused: it belongs to another process now.
    pidfd.close()
    if found != 0:
        os._exit(ExitCode.OK)
    return None


def _signal_when_readable(fd: int, sig: int, owner: int) -> None:
    """Have the kernel send `sig` to the process `owner`, or the group -`owner`, when `fd` becomes readable or closes.

    The right to signal is the one held at this moment (F_SETOWN and F_SETSIG, fcntl(2); Linux). Raises OSError.
    """
    fcntl.fcntl(fd, fcntl.F_SETSIG, int(sig))
    fcntl.fcntl(fd, fcntl.F_SETOWN, owner)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


class Lifeline:
    """A parent-death pipe: nothing is written to it, and its end of file means that the parent has exited.

    `System.lifeline()` makes it before the fork; only the parent keeps the writing end. `fileno()` is the reading end.
    It becomes readable however the parent ended, and works across setuid and pid namespaces.
    """

    __slots__ = ("_reader", "writer")

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        # Otherwise another user could open it for writing (/proc/self/fd). A byte is no end of file, but it would kill
        # a child that has called `arm`.
        with contextlib.suppress(OSError):
            os.fchmod(reader, 0o400)
        self._reader = Descriptor(reader)
        self.writer = Descriptor(writer)

    def fileno(self) -> int:
        return self._reader.fileno()

    def broken(self) -> bool:
        """Return whether the parent has exited. Never block. Discard bytes in the pipe, which mean nothing."""
        try:
            return os.read(self.fileno(), 65536) == b""
        except BlockingIOError:
            return False

    def arm(self, sig: int) -> bool:
        """Have the kernel send `sig` to this process, a child, at the end of file (`_signal_when_readable`).

        For code that cannot watch `fileno()`. Unlike PR_SET_PDEATHSIG it survives a later setuid. Return False, with
        nothing changed, if the system cannot do it. If the parent has exited already, exit at once.
        """
        if sys.platform != "linux":
            return False
        try:
            # An open file description of its own: a shared one would signal only the child that armed it last.
            own = Descriptor(os.open(f"/proc/self/fd/{self.fileno()}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        try:
            _signal_when_readable(own.fileno(), sig, os.getpid())
        except OSError:
            own.close()
            return False
        self._reader.close()
        self._reader = own
        if self.broken():
            os._exit(ExitCode.OK)
        return True

    def close(self) -> None:
        """Close this process's ends (idempotent). In the parent, every child then sees the end of file."""
        self._reader.close()
        self.writer.close()


class Tether:
    """A socket pair made before the fork: the parent keeps `parent_end`, the child calls `arm`.

    When the parent exits, the kernel kills the child's whole process group, even while the child's loop is blocked.
    PR_SET_PDEATHSIG would end the child only. Not a pipe, because another process could reopen it for writing
    (/proc/self/fd), and one byte would kill the group. Raises OSError if no descriptors are left.
    """

    __slots__ = ("_child_end", "parent_end")

    def __init__(self) -> None:
        self.parent_end, self._child_end = socket.socketpair()

    def close_child_end(self) -> None:
        self._child_end.close()

    def arm(self) -> None:
        """Have the kernel kill the group when the parent's end closes. Do nothing if the system cannot.

        Call it in the child, which leads its group, after it has changed its user (`_signal_when_readable`).
        """
        if sys.platform == "linux" and os.getpgrp() == os.getpid():
            with contextlib.suppress(OSError):
                _signal_when_readable(self._child_end.fileno(), signal.SIGKILL, -os.getpid())

    def close(self) -> None:
        """Close both ends (idempotent). In the parent, this kills what is left of an armed group."""
        self.parent_end.close()
        self._child_end.close()
