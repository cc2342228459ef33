"""Tie a worker's process group to its supervisor: when the supervisor exits, the kernel kills the whole group.

It does so even while the worker's loop is blocked. PR_SET_PDEATHSIG would end the worker only. See `parent_death.py`
for the other ways in which a worker learns of its supervisor's death.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys


class Tether:
    """A socket pair made before the fork: the parent keeps `parent_end`, the child calls `arm`.

    Not a pipe, because another process could reopen it for writing (/proc/self/fd), and one byte would kill the group.
    Raises OSError if no descriptors are left.
    """

    __slots__ = ("_child_end", "parent_end")

    def __init__(self) -> None:
        self.parent_end, self._child_end = socket.socketpair()

    def close_child_end(self) -> None:
        """Close the child's end, in the parent, after the fork."""
        self._child_end.close()

    def arm(self) -> None:
        """Have the kernel kill the group when the parent's end closes (F_SETOWN and F_SETSIG, fcntl(2)).

        Call it in the child, which leads its group, after it has changed its user: the right to signal is the one that
        the process has at this moment. Does nothing where the system cannot do it.
        """
        if sys.platform != "linux" or os.getpgrp() != os.getpid():
            return
        fd = self._child_end.fileno()
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """Close both ends (idempotent). In the parent, this kills what is left of an armed group."""
        self.parent_end.close()
        self._child_end.close()
