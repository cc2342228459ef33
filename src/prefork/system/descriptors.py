"""File descriptors with an owner. Nothing here knows what a descriptor is for."""

from __future__ import annotations

import contextlib
import os
import resource
from typing import IO, Protocol

#: As far as the limit is raised: some programs that a service starts look at every number up to it.
MOST = 1_048_576


def raise_limit() -> int:
    """Raise the limit of open descriptors as far as this process may; what it is now. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def count_descriptors(pid: int) -> int | None:
    """How many a process has open; None where that is not told."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def anonymous_file(name: str) -> IO[bytes]:
    """A file without a place in the file system, to write and read: in memory where that can be (memfd_create(2), which
    some sandboxes refuse), else in the temporary directory. Raises OSError."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return open(os.memfd_create(name), "r+b", buffering=0)
    # Imported here: it is seldom needed.
    import tempfile

    return tempfile.TemporaryFile(buffering=0)


class Closeable(Protocol):
    """Whatever has a `close()` that may be called twice."""

    def close(self) -> None: ...


class Descriptor:
    """Owns one file descriptor; `close` is idempotent, and `fileno` raises ValueError afterwards."""

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError("the descriptor is closed")
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
