"""Fork processes, and end adopted ones. Only this file and `child.py` make, kill or reap a process.

A test can replace both, because everything else goes through `System` and `Child`. The callers decide which child is
wanted, and when. No event loop appears here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import ExitCode, place_of, reason_of
from .child import Child
from .descriptors import Closeable, Descriptor
from .parent_death import Lifeline, load_prctl
from .signals import BLOCKABLE, restore_default_signals, unblock_signals

#: errno values that mean the system lacks a resource that may be free again in a moment (fork(2), accept(2)).
RESOURCE_ERRNOS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
#: Seconds between checks for dead children without pidfds, because a SIGCHLD can get lost.
REAP_INTERVAL = 0.5
#: Adopted children reaped in one call, so that a storm of them does not delay the supervisor's other work.
MAX_REAPED = 256


class System:
    """The system calls on processes, as an object that a test can replace. One for each parent process."""

    def __init__(self) -> None:
        self._closed_in_child: weakref.WeakSet[Closeable] = weakref.WeakSet()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def exit(self, code: int) -> NoReturn:
        """End this process at once, as a forked child must.

        Otherwise atexit handlers and finalizers of the parent would run twice.
        """
        _flush_standard_streams()
        os._exit(code)

    def close_in_child(self, *things: Closeable) -> None:
        """Register objects that `fork` closes in every child. References are weak.

        Otherwise a sibling would hold the other end of a pipe open, and its end of file would never arrive.
        """
        for thing in things:
            self._closed_in_child.add(thing)

    def lifeline(self) -> Lifeline:
        """Make a pipe whose only writing end stays in this process, so that every child sees this process exit."""
        line = Lifeline()
        self.close_in_child(line.writer)
        return line

    def fork(self) -> Child | None:
        """Fork. Return a `Child` in the parent and None in the child.

        The child starts with **all signals blocked**, the handlers of a freshly started Python, no wake-up descriptor
        and no timers. What `close_in_child` registered and its siblings' pidfds are closed. It installs its own
        handlers, then calls `unblock_signals()`; a signal sent to it before that is delivered then.

        Raises OSError (EAGAIN, ENOMEM, EMFILE ...) if the system lacks a resource; nothing has changed then.
        """
        load_prctl()
        _flush_standard_streams()  # otherwise parent and child would both write the buffered output
        _stop_ignoring_sigchld()
        # Holds the pidfd's number, so that a parent at its limit of descriptors fails before it has a child.
        reserve = Descriptor(os.open(os.devnull, os.O_RDONLY)) if _pidfd_works() else None
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        child = None
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKABLE)
            pid = os.fork()
            if pid == 0:
                self._become_child(reserve)
                return None
            child = self._open_child(pid, reserve)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except BaseException:
            # A handler of the caller's may have raised (KeyboardInterrupt). Leave no child that has no owner.
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
        """Start another program as a child that outlives this process. Raises OSError as `fork` does.

        It inherits the standard descriptors and `descriptors`, under their own numbers. Its signals are as a shell
        would set them. If the program cannot be executed, `failed` is called in the child, which exits with status 127.
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

    def reap_adopted(self, own: Collection[int]) -> None:
        """Reap dead children that are not in `own`: process 1 inherits the orphans of its whole container.

        For process 1 only: in any other one it would take exit statuses that other code in the process waits for.
        """
        for _ in range(MAX_REAPED):
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # A child in `own` is reported again until its owner reaps it.
            if found is None or found.si_pid in own:
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)

    def reap(self, pids: Collection[int]) -> None:
        """Reap those of these children that have ended, and drop their exit statuses."""
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def kill(self, pids: Collection[int]) -> None:
        """Send SIGKILL to these children. No other code may reap them, otherwise a pid may already be reused."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def signal_own_process(self, number: int) -> None:
        """Send a signal to this process, for whichever of its threads has not blocked it, or waits for it."""
        os.kill(os.getpid(), number)

    def kill_own_group(self) -> NoReturn:
        """Kill this process, and its whole group if it leads one."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(ExitCode.OK)

    def _open_child(self, pid: int, reserve: Descriptor | None) -> Child:
        pidfd = None
        if reserve is not None:
            reserve.close()
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                child = Child(pid, None)
                child.signal(signal.SIGKILL)
                child.wait()
                raise
        child = Child(pid, pidfd)
        self.close_in_child(child)
        return child

    def _become_child(self, reserve: Descriptor | None) -> None:
        try:
            restore_default_signals()
            for thing in [*self._closed_in_child, *([reserve] if reserve else [])]:
                with contextlib.suppress(OSError):
                    thing.close()
            self._closed_in_child.clear()
        except BaseException as exc:  # continuing would run the parent's code twice
            if isinstance(exc, OSError | MemoryError):
                reason = f"{reason_of(exc)} (in {place_of(exc)})"
                text = f"prefork[{os.getpid()}]: a forked process cannot begin: {reason}\n"
                with contextlib.suppress(OSError):
                    os.write(2, text.encode(errors="backslashreplace"))
                os._exit(ExitCode.SERVICE)
            traceback.print_exc()
            os._exit(ExitCode.BUG)


def set_title(role: str) -> None:
    """Have ps(1) show this process as `prefork: ROLE`."""
    # A dependency of the command only: a program that calls `serve` may not have it.
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(f"prefork: {role}")


def slot_in_title(pid: int) -> int:
    """Return the slot of the worker that a process calls itself by its title; -1 if it does not."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return -1
    found = re.match(rb"prefork: worker ([0-9]{1,4})\b", title)
    return -1 if found is None else int(found[1])


@functools.cache
def _pidfd_works() -> bool:
    """Return whether the kernel has pidfds that can be waited for (Linux 5.4; some sandboxes refuse them)."""
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
        return True  # understood: a process is not its own child
    except OSError:
        return False
    finally:
        probe.close()
    return False


def _stop_ignoring_sigchld() -> None:
    # An ignored SIGCHLD survives exec. With it the kernel would reap the children itself, and every status be lost.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or absent
            stream.flush()
