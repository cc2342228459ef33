"""File descriptors with an owner. Nothing here knows what a descriptor is for."""

from __future__ import annotations

import os
from typing import Protocol


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
