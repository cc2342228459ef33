"""The epolls of this process, by what the kernel tells of them (proc(5), fdinfo): a program's loop does not tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from select import epoll
from typing import NamedTuple


class Watch(NamedTuple):
    """One registration: an epoll, a descriptor that it watches, the events, and what it reports for them."""

    epoll: int
    fd: int
    events: int
    data: int


def silence(listeners: Collection[int]) -> None:
    """Have the epolls of this process report nothing more of the listeners.

    The sockets stay open in other workers, so each of their connections would wake this one (epoll(7)). Not by removing
    them, because the program's loop will do that itself and would fail.
    """
    for watch in list(_watches()):
        if watch.fd in listeners:
            with _opened(watch) as watching:
                watching.modify(watch.fd, 0)


def replace(fd: int, other: int) -> None:
    """Put the file of `other` under the descriptor `fd`, as dup2(2) does, and have the epolls that watch `fd` watch it.

    An epoll watches a file, not a number, and forgets a file that is closed. Raises OSError.
    """
    # What a library in C registers may be reported by another value than the descriptor, which cannot be set here.
    watches = [watch for watch in _watches() if watch.fd == fd == watch.data]
    os.dup2(other, fd, inheritable=False)
    for watch in watches:
        with _opened(watch) as watching:
            watching.register(fd, watch.events)


@contextlib.contextmanager
def _opened(watch: Watch) -> Iterator[epoll]:
    """Yield the epoll of `watch`, within a block in which it may have been closed meanwhile."""
    with contextlib.suppress(OSError, ValueError), epoll.fromfd(os.dup(watch.epoll)) as watching:
        yield watching


def _watches() -> Iterator[Watch]:
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fdinfo"):
            with (
                contextlib.suppress(OSError, ValueError, IndexError),
                open(f"/proc/self/fdinfo/{name}", encoding="ascii", errors="replace") as info,
            ):
                for line in info:
                    # tfd: 5 events: 19 data: 5, the last two in hexadecimal
                    if line.startswith("tfd:"):
                        words = line.split()
                        yield Watch(int(name), int(words[1]), int(words[3], 16), int(words[5], 16) & 0xFFFFFFFF)
