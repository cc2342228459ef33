"""What makes a fork of this process unsafe, found before it is made and called by its name.

Refuses what breaks silently in the children (an event loop, a thread other than the main one as the caller); warns of
what may (other threads, open connections). It looks, and changes nothing.
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

#: Kernel objects of event loops, as /proc/self/fd names them. A lone eventfd may well be meant to be shared.
_LOOP_OBJECTS = ("anon_inode:[eventpoll]", "anon_inode:[io_uring]")


def refuse_unsafe_fork(caller: str, stacklevel: int, known: Collection[int] = ()) -> None:
    """Raise RuntimeError, which names the reason, when `caller` must not fork now; warn when it should not.

    `stacklevel` is that of `warnings.warn`, counted from this function; `known` are descriptors that are in order.
    """
    if threading.get_ident() != threading.main_thread().ident:
        raise RuntimeError(
            f"{caller}: called in thread {threading.current_thread().name!r}; call it in the main thread (signals go "
            "there, and children die with the thread that forked them)"
        )
    found = running_loop() or existing_loop() or loop_descriptor()
    if found:
        raise RuntimeError(
            f"{caller}: {found}; the children would share its descriptors and take each other's events; create it "
            "after the fork, in each child"
        )
    threads = other_threads()
    if threads:
        warnings.warn(
            f"{caller}: forking while {len(threads)} other thread{'s are' if len(threads) > 1 else ' is'} running "
            f"({', '.join(threads)}); the children have none of them, and a lock that one holds now stays locked: "
            "start threads after the fork, in each child",
            RuntimeWarning,
            stacklevel,
        )
    connections = open_connections(known)
    if connections:
        warnings.warn(
            f"{caller}: forking with connections open: {', '.join(connections)}; the children share them, and take "
            "each other's answers: connect after the fork, in each child",
            RuntimeWarning,
            stacklevel,
        )


def running_loop() -> str:
    """The asyncio loop that runs in this thread, described; "" when there is none."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    try:
        return f"an event loop is running in this process ({asyncio.get_running_loop()!r})"
    except RuntimeError:
        return ""


def existing_loop() -> str:
    """An asyncio loop, running or not, that exists and is not closed, described; "" when there is none.

    Looks at the objects alive: a loop need not be the current one, and asking the policy for that makes one, or warns.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return ""
    for thing in gc.get_objects():
        # By its type: isinstance() asks a proxy's __class__, which may run anybody's code.
        if issubclass(type(thing), asyncio.AbstractEventLoop):
            with contextlib.suppress(Exception):  # half-made
                if not thing.is_closed():
                    return f"an event loop exists in this process ({thing!r})"
    return ""


def loop_descriptor() -> str:
    """An epoll or io_uring descriptor that this process made, described; "" when there is none, or no /proc.

    One without close-on-exec is passed over: it may come from the program that started this one.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return ""
    for fd in numbers:
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target in _LOOP_OBJECTS and fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                return f"an event loop's descriptor is open in this process (descriptor {fd}, {target})"
    return ""


def open_connections(known: Collection[int] = ()) -> list[str]:
    """The connected sockets that this process made, described, but for those in `known`; [] where there is no /proc.

    One without close-on-exec is passed over: it may come from the program that started this one.
    """
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
        # Raises OSError for one that has no peer: a listening socket, or a fresh one.
        peer = sock.getpeername()
        where = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"unix:{os.fsdecode(peer)}"
        return [f"{where} (descriptor {fd})"]


def other_threads() -> list[str]:
    """The names of all threads but the calling one, those that Python did not start (where there is /proc) included."""
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    own = threading.get_native_id()
    names = [f"Thread {name!r}" for tid, name in known.items() if tid != own]
    with contextlib.suppress(OSError):
        for tid in map(int, os.listdir("/proc/self/task")):
            if tid not in known and tid != own:
                with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm") as file:
                    names.append(f"native thread {file.read().strip()!r}")
    return names
