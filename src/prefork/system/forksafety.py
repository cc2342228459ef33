"""Checks before a fork: refuse what breaks the children silently, warn of what may.

Refused are an event loop, and a fork in a thread other than the main one. Other threads and open connections get a
warning. A descriptor without close-on-exec is ignored, because it may come from the program that started this one.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import sys
import threading
import warnings
from collections.abc import Collection

#: Kernel objects of event loops, as /proc/self/fd names them. Not eventfd, which may be meant to be shared.
_LOOP_OBJECTS = ("anon_inode:[eventpoll]", "anon_inode:[io_uring]")


def refuse_unsafe_fork(caller: str, stacklevel: int, known: Collection[int] = ()) -> None:
    """Raise RuntimeError, which names the reason, if `caller` must not fork now; warn if it should not.

    `stacklevel` is that of `warnings.warn`, counted from this function. Descriptors in `known` are not looked at.
    """
    if threading.get_ident() != threading.main_thread().ident:
        raise RuntimeError(
            f"{caller}: called in thread {threading.current_thread().name!r}; call it in the main thread (signals go "
            "there, and children die with the thread that forked them)"
        )
    found = running_loop() or existing_loop() or loop_descriptor()
    if found:
        raise RuntimeError(
            f"{caller}: {found}; the children would share its descriptors and receive each other's events; create it "
            "after the fork, in each child"
        )
    threads = other_threads()
    if threads:
        warnings.warn(
            f"{caller}: forking while {len(threads)} other thread{'s are' if len(threads) > 1 else ' is'} running "
            f"({', '.join(threads)}); the children have none of them, and a lock that one holds now stays locked "
            "there: start threads after the fork, in each child",
            RuntimeWarning,
            stacklevel,
        )
    connections = open_connections(known)
    if connections:
        warnings.warn(
            f"{caller}: forking with connections open: {', '.join(connections)}; the children share them, and receive "
            "each other's answers: connect after the fork, in each child",
            RuntimeWarning,
            stacklevel,
        )


def running_loop() -> str:
    """Describe the asyncio loop that runs in this thread; "" if there is none."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    try:
        return f"an event loop is running in this process ({asyncio.get_running_loop()!r})"
    except RuntimeError:
        return ""


def existing_loop() -> str:
    """Describe an asyncio loop that exists and is not closed, running or not; "" if there is none.

    Look at all objects, because a loop need not be the current one, and asking the policy for it makes one or warns.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    for thing in gc.get_objects():
        # By its type, because isinstance() reads a proxy's __class__, which may run any code.
        if issubclass(type(thing), asyncio.AbstractEventLoop):
            with contextlib.suppress(Exception):  # not completely initialized
                if not thing.is_closed():
                    return f"an event loop exists in this process ({thing!r})"
    return ""


def loop_descriptor() -> str:
    """Describe an epoll or io_uring descriptor that this process made; "" if there is none, or no /proc."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return ""
    for fd in numbers:
        with contextlib.suppress(OSError):  # the descriptor of listdir itself is closed by now
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target in _LOOP_OBJECTS and fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                return f"an event loop's descriptor is open in this process (descriptor {fd}, {target})"
    return ""


def open_connections(known: Collection[int] = ()) -> list[str]:
    """Describe the connected sockets that this process made, except those in `known`; [] if there is no /proc."""
    found = []
    with contextlib.suppress(OSError):
        for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if fd in known or not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                    continue
                if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                    found += _describe_peer(fd)
    return found


def _describe_peer(fd: int) -> list[str]:
    with socket.socket(fileno=os.dup(fd)) as sock:
        # OSError for a socket without a peer: listening, or not connected.
        peer = sock.getpeername()
        where = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"unix:{os.fsdecode(peer)}"
        return [f"{where} (descriptor {fd})"]


def other_threads() -> list[str]:
    """Return the names of all other threads. With /proc also of those that Python did not start."""
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    own = threading.get_native_id()
    names = [f"Thread {name!r}" for tid, name in known.items() if tid != own]
    with contextlib.suppress(OSError):
        for tid in map(int, os.listdir("/proc/self/task")):
            if tid not in known and tid != own:
                with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm") as file:
                    names.append(f"native thread {file.read().strip()!r}")
    return names
