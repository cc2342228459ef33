"""The pidfile: a file with the supervisor's number in it, locked for as long as it runs.

The lock is what counts, not the content: a number that was left behind means nothing, and is never signalled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat

from ..errors import ConfigError
from ..events import visible
from .descriptors import Descriptor


class PidFile:
    """Owns the file at `path`, by the lock on `fd`, which a successor may share (flock(2): it belongs to the open file
    description)."""

    def __init__(self, path: str, fd: int, inherited: bool = False) -> None:
        self.inherited = inherited
        # Absolute: the supervisor may be in another folder when it removes it.
        self.path = os.path.abspath(path)
        self._descriptor = Descriptor(fd)

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._descriptor.fileno()

    def write(self) -> None:
        """Put this process's number in. A full disk costs the number, not the service."""
        line = f"{os.getpid()}\n".encode()
        with contextlib.suppress(OSError):
            # In this order there is no moment at which the first line is not a number.
            os.pwrite(self.fileno(), line, 0)
            os.ftruncate(self.fileno(), len(line))

    def remove(self) -> None:
        """Remove the file, if it still is the one that we have locked, and let the lock go."""
        with contextlib.suppress(OSError):
            if _is_at(self.fileno(), self.path):
                os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Let the lock go, unless a successor shares it; the file stays."""
        self._descriptor.close()


def claim(path: str) -> PidFile:
    """The file, made if it is missing, locked, with our number in it. Raises ConfigError if another process has it."""
    while True:
        file = _open(path)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            content = os.pread(file.fileno(), 32, 0).decode("ascii", "replace").strip()
            file.close()
            if exc.errno != errno.EWOULDBLOCK:
                raise _refused(path, os.strerror(exc.errno or 0).lower()) from None
            raise _refused(path, f"another supervisor has it{f' ({visible(content)})' if content else ''}") from None
        # Whoever had it may have removed it between our opening and our locking: then it is nobody's any more.
        if _is_at(file.fileno(), path):
            _require_number(file, path)
            file.write()
            return file
        file.close()


def _open(path: str) -> PidFile:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = PidFile(path, os.open(path, flags, 0o644))
    except OSError as exc:
        raise _refused(path, (exc.strerror or str(exc)).lower()) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _refused(path, "it is not a regular file")
    return file


def _require_number(file: PidFile, path: str) -> None:
    """What is in it goes: not if it is somebody's text."""
    content = os.pread(file.fileno(), 64, 0)
    if not re.fullmatch(rb"\s*[0-9]{0,20}\s*", content):
        file.close()
        raise _refused(path, "it holds something else than a number; remove it yourself if it is not needed")


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _refused(path: str, reason: str) -> ConfigError:
    return ConfigError(f"--pidfile {visible(path)}: {reason}")
