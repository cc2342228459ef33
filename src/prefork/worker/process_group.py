"""A worker's process group, and what the children that its service forks must not keep.

The group is ended by the supervisor (`system/processes.py`), or by the worker itself when the supervisor is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable

from ..system.descriptors import Closeable
from ..system.parent_death import die_with_parent


def become_leader() -> None:
    """Make this process the leader of a process group of its own.

    In a terminal that is a background group. SIGTTOU and SIGTTIN are ignored: otherwise a write (`stty tostop`) or a
    read would stop the process; now the write succeeds and the read fails (termios(3), tcsetpgrp(3)).
    """
    with contextlib.suppress(OSError):
        # The supervisor does the same; whichever runs second may fail.
        os.setpgid(0, 0)
    for sig in (signal.SIGTTOU, signal.SIGTTIN):
        signal.signal(sig, signal.SIG_IGN)


def contain_children(to_close: Iterable[Closeable], resets_signals: bool = True) -> None:
    """Have every child that Python forks in this process close `to_close`, and die with this process.

    A child that kept a listening socket would keep the port, and the kernel would queue connections that nothing
    accepts. The child dies with the worker only if the main thread has forked it, because to the kernel a parent is a
    thread (prctl(2), PR_SET_PDEATHSIG). A daemon's second fork is not covered. In the child SIGTERM gets its default
    action back: the inherited handler only wakes this process's loop, and multiprocessing would wait in vain. Not with
    `resets_signals` false, because the handlers are those of a program, which knows what its children do with them.
    """
    worker = os.getpid()
    inherited = tuple(to_close)
    dies_with_worker = False

    def before_fork() -> None:
        nonlocal dies_with_worker
        # Not by getppid() in the child, because the worker may be gone by then.
        dies_with_worker = os.getpid() == worker and threading.get_ident() == threading.main_thread().ident

    def in_child() -> None:
        for each in inherited:
            with contextlib.suppress(OSError):
                each.close()
        # ValueError: not in the main thread of the main interpreter.
        if resets_signals:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if dies_with_worker:
            die_with_parent(worker, signal.SIGKILL)

    os.register_at_fork(before=before_fork, after_in_child=in_child)
