"""A tether between a supervisor and the process group of a worker: when the supervisor is gone, the kernel kills all of
the group, also while the worker's loop is blocked.

PR_SET_PDEATHSIG ends the worker alone. What else a worker does about its supervisor's death is not known here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys


class Tether:
    """A pair of sockets, made before the fork. The parent keeps `ours`, the child calls `arm` and keeps the rest.

    Not a pipe: another process can open it again for writing (/proc/self/fd), and a byte in it would kill. Raises
    OSError where there are no descriptors left.
    """

    __slots__ = ("_theirs", "ours")

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()

    def keep_ours(self) -> None:
        """In the parent, after the fork."""
        self._theirs.close()

    def arm(self) -> None:
        """In the child, which leads its group, once it is the user that it is to be: the right to signal is that of
        this moment. Does nothing where the system cannot do it (F_SETOWN and F_SETSIG, fcntl(2))."""
        if sys.platform != "linux" or os.getpgrp() != os.getpid():
            return
        fd = self._theirs.fileno()
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """Close both ends (idempotent). In the parent, this kills whatever is left of an armed group."""
        self.ours.close()
        self._theirs.close()
