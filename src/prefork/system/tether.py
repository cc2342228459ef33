"""Tie a worker's process group to its supervisor: when the supervisor exits, the kernel kills the whole group.

It does so even while the worker's loop is blocked. PR_SET_PDEATHSIG would end the worker only. See `parent_death.py`
for the other ways in which a worker learns of its supervisor's death.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

from .parent_death import signal_when_readable


class Tether:
    """A socket pair made before the fork: the parent keeps `parent_end`, the child calls `arm`.

    Not a pipe, because another process could reopen it for writing (/proc/self/fd), and one byte would kill the group.
    Raises OSError if no descriptors are left.
    """

    __slots__ = ("_child_end", "parent_end")

    def __init__(self) -> None:
        self.parent_end, self._child_end = socket.socketpair()

    def close_child_end(self) -> None:
        self._child_end.close()

    def arm(self) -> None:
        """Have the kernel kill the group when the parent's end closes. Do nothing if the system cannot.

        Call it in the child, which leads its group, after it has changed its user (`signal_when_readable`).
        """
        if sys.platform == "linux" and os.getpgrp() == os.getpid():
            with contextlib.suppress(OSError):
                signal_when_readable(self._child_end.fileno(), signal.SIGKILL, -os.getpid())

    def close(self) -> None:
        """Close both ends (idempotent). In the parent, this kills what is left of an armed group."""
        self.parent_end.close()
        self._child_end.close()
