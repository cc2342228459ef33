"""A child whose parent is gone: how it is told, by the kernel or by a pipe, and never too late.

What a child does about it is decided elsewhere. Nothing here forks, signals or waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import sys
from collections.abc import Callable

from ..errors import ExitCode
from .descriptors import Descriptor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@functools.cache
def load_prctl() -> Callable[..., int] | None:
    """libc's prctl, None where there is none. Loaded by the parent, so that a child allocates as little as possible."""
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

    `parent_pid` is `os.getpid()` of the parent, taken before the fork: if it died in between, this process ends here.
    setuid and setgid clear the setting, so call this after them. Does nothing where there is no prctl.
    """
    prctl = load_prctl()
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)
    # Not "== 1": an orphan goes to the nearest subreaper. 0: the parent lives, in a pid namespace that we cannot see.
    if os.getppid() not in (parent_pid, 0):
        os._exit(ExitCode.OK)


def open_parent(parent_pid: int) -> Descriptor | None:
    """A descriptor that is readable once the parent of this process has ended (pidfd_open(2)), whatever anybody writes
    anywhere; None where there is none. `parent_pid` as above; if it is gone already, this process ends here."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        pidfd = Descriptor(os.pidfd_open(parent_pid))
    except OSError:
        # No pidfds, or the parent is in a pid namespace that we cannot see, or gone: the lifeline knows.
        return None
    found = os.getppid()
    if found == parent_pid:
        return pidfd
    # The number is another process's.
    pidfd.close()
    if found != 0:
        os._exit(ExitCode.OK)
    return None


class Lifeline:
    """A pipe that nobody writes to: its only writing end is the parent's, its end of file is the parent's death.

    Made by `System.lifeline()` before the fork, which also closes the writing end in every child. `fileno()` is the
    reading end: readable means that the parent is gone, however it went, across setuid and pid namespaces.
    """

    __slots__ = ("_reader", "writer")

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        # It cannot be opened for writing (/proc/self/fd) by another user, nor by mistake: a byte in it is no end, but a
        # child that is armed would die of it.
        with contextlib.suppress(OSError):
            os.fchmod(reader, 0o400)
        self._reader = Descriptor(reader)
        self.writer = Descriptor(writer)

    def fileno(self) -> int:
        """The reading end."""
        return self._reader.fileno()

    def broken(self) -> bool:
        """Whether the parent is gone. Never blocks. What was written to it is thrown away: it says nothing."""
        try:
            return os.read(self.fileno(), 65536) == b""
        except BlockingIOError:
            return False

    def arm(self, sig: int) -> bool:
        """In the child: have the kernel send `sig` to this process at the end of file (F_SETSIG, fcntl(2)).

        For code that cannot watch `fileno()`. Unlike PR_SET_PDEATHSIG it survives a later setuid: the right to signal
        is that of the moment it was armed. False, and nothing changed, where the system cannot do it. If the parent is
        gone already, this process ends here.
        """
        if sys.platform != "linux":
            return False
        try:
            # A description of its own: the owner of a shared one would be whichever child came last.
            own = Descriptor(os.open(f"/proc/self/fd/{self.fileno()}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError:
            return False
        try:
            fcntl.fcntl(own.fileno(), fcntl.F_SETSIG, int(sig))
            fcntl.fcntl(own.fileno(), fcntl.F_SETOWN, os.getpid())
            flags = fcntl.fcntl(own.fileno(), fcntl.F_GETFL)
            fcntl.fcntl(own.fileno(), fcntl.F_SETFL, flags | os.O_ASYNC)
        except OSError:
            own.close()
            return False
        self._reader.close()
        self._reader = own
        if self.broken():
            os._exit(ExitCode.OK)
        return True

    def close(self) -> None:
        """Close what this process holds of it (idempotent). In the parent, every child then sees the end of file."""
        self._reader.close()
        self.writer.close()
