"""File descriptors with an owner. Nothing here knows what a descriptor is for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import resource
from collections.abc import Callable
from typing import IO, Protocol

#: Highest limit that is set, because some programs that a service starts walk through every number up to the limit.
MAX_DESCRIPTORS = 1_048_576


def raise_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard limit, at most MAX_DESCRIPTORS; return it. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def count_descriptors(pid: int, max_listed: int | None = None) -> int | None:
    """Return how many descriptors a process has open; None if /proc does not tell.

    Linux 6.2 and newer gives the number. Before that they are listed, which takes 10 ms for 10,000: None if there are
    `max_listed` or more.
    """
    path = f"/proc/{pid}/fd"
    try:
        if counted := os.stat(path).st_size:
            return counted
        with os.scandir(path) as entries:
            found = sum(1 for _ in itertools.islice(entries, max_listed))
    except OSError:
        return None
    return None if found == max_listed else found


def anonymous_file(name: str) -> IO[bytes]:
    """Open a file that has no path, for writing and reading. Raises OSError.

    It lies in memory (memfd_create(2)). Where a sandbox refuses that call it lies in the temporary directory.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):
            return open(os.memfd_create(name), "r+b", buffering=0)
    # Imported here because it is seldom needed.
    import tempfile

    return tempfile.TemporaryFile(buffering=0)


@functools.cache
def can_seal() -> bool:
    """Return whether `sealed_file` works in this process: a sandbox may refuse its calls."""
    try:
        sealed_file("prefork", b"").close()
    except OSError as exc:
        # Without a free descriptor it may work later.
        return exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return True


def sealed_file(name: str, content: bytes | bytearray) -> Descriptor:
    """Open a file in memory that has this content and that no process can change (memfd_create(2), F_ADD_SEALS).

    Raises OSError, also where the system has no such files.
    """
    if not hasattr(os, "memfd_create") or not hasattr(fcntl, "F_ADD_SEALS"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    file = Descriptor(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(file.fileno(), view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, seals)
    except BaseException:
        file.close()
        raise
    return file


class Closeable(Protocol):
    """An object with a `close()` that may be called twice."""

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


class Reserve:
    """Keeps some descriptors open, to be given up when the process may open no more. `close` is idempotent.

    `close_in_child` gets each, because no child needs them. A reserve that cannot be filled is smaller.
    """

    def __init__(self, number: int, close_in_child: Callable[[Closeable], object]) -> None:
        self._number = number
        self._close_in_child = close_in_child
        self._held: list[Descriptor] = []
        self.fill()

    def fill(self) -> None:
        """Open what is missing, as far as the system permits."""
        with contextlib.suppress(OSError):
            while len(self._held) < self._number:
                self._held.append(Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)))
                self._close_in_child(self._held[-1])

    def close(self) -> bool:
        """Give the descriptors up. Return whether there were any."""
        had = bool(self._held)
        while self._held:
            self._held.pop().close()
        return had
