"""A worker's process group, and what a child that its service forks must not keep.

What ends the group is the supervisor (`system/processes.py`), or the worker itself when the supervisor is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable

from ..system.descriptors import Closeable
from ..system.parent_death import die_with_parent


def lead() -> None:
    """Lead a group of our own. In a terminal it is one in the background: its members may write there all the same
    (`stty tostop`), and read an error, where they would be stopped (termios(3), tcsetpgrp(3))."""
    with contextlib.suppress(OSError):
        # The supervisor does the same.
        os.setpgid(0, 0)
    for sig in (signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(sig, signal.SIG_IGN)


def guard_children(private: Iterable[Closeable]) -> None:
    """Have the children that Python forks in this process close `private`, and die with it.

    A child that keeps a listening socket keeps the port, and connections that nothing accepts. It dies with us where
    the main thread has forked it: for the kernel a parent is a thread (prctl(2), PR_SET_PDEATHSIG). A daemon's second
    fork is none of ours. SIGTERM ends it again: the handler that came with the fork only tells our loop, and
    multiprocessing would wait for it in vain.
    """
    worker = os.getpid()
    things = tuple(private)
    dies = False

    def before() -> None:
        nonlocal dies
        # Not asked of getppid() in the child: the worker may be gone by then.
        dies = os.getpid() == worker and threading.get_ident() == threading.main_thread().ident

    def in_child() -> None:
        for thing in things:
            with contextlib.suppress(OSError):
                thing.close()
        with contextlib.suppress(ValueError):
            # Not in the main thread of the interpreter.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if dies:
            die_with_parent(worker, signal.SIGKILL)

    os.register_at_fork(before=before, after_in_child=in_child)
