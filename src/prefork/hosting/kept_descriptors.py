"""Keep the descriptors of a worker: a program that closes all that it does not know would cut it off.

As daemons do at their start. What they open next would have the numbers of the worker's pipes, and get its messages.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection


def install(but: Collection[int] = ()) -> None:
    """Have `os.close` and `os.closerange` spare what is open now above 2, except `but`, in this process, for good.

    Processes that it forks close what they want.
    """
    close, closerange, worker = os.close, os.closerange, os.getpid()
    kept = sorted({fd for fd in _open_descriptors() if fd > 2} - set(but))
    members = frozenset(kept)

    def close_unless_kept(fd: int) -> None:
        if fd not in members or os.getpid() != worker:
            close(fd)

    def closerange_but_kept(fd_low: int, fd_high: int, /) -> None:
        if os.getpid() == worker:
            for fd in kept:
                if fd_low <= fd < fd_high:
                    closerange(fd_low, fd)
                    fd_low = fd + 1
        closerange(fd_low, fd_high)

    for name, function in (("close", close_unless_kept), ("closerange", closerange_but_kept)):
        function.__name__ = function.__qualname__ = name
        setattr(os, name, function)


def _open_descriptors() -> set[int]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            # That of the directory is closed again.
            with contextlib.suppress(OSError):
                os.fstat(int(name))
                found.add(int(name))
    return found
