"""The pidfile: a file with the supervisor's number in it, locked for as long as it runs.

The lock is what counts, not the content: a number that was left behind means nothing, and is never signalled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat

from ..errors import ConfigError, reason_of
from ..text import escape_controls
from .descriptors import Descriptor
from .paths import Place, absolute, hold, insist, same


class PidFile:
    """Owns the file at `path`, by the lock on `fd`, which a successor may share (flock(2): it belongs to the open file
    description)."""

    def __init__(self, path: str, descriptor: Descriptor, inherited: bool = False) -> None:
        self.inherited = inherited
        # Absolute: the supervisor may be in another folder when it removes it.
        self.path = absolute(path)
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._descriptor.fileno()

    def write(self) -> str:
        """Put this process's number in. Why it could not be, "" if it could: a full disk costs the number, not the
        service, and the number of another process does not stay in its place."""
        line = f"{os.getpid()}\n".encode()
        try:
            # In this order there is no moment at which the first line is not a number.
            os.pwrite(self.fileno(), line, 0)
            os.ftruncate(self.fileno(), len(line))
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fileno(), 0)
            return reason_of(exc)
        return ""

    def remove(self) -> None:
        """Remove the file, if it still is the one that we have locked, and let the lock go."""
        insist(self._remove)
        self.close()

    def _remove(self) -> None:
        with hold(self.path) as place:
            if _is_at(self.fileno(), place):
                place.unlink()

    def close(self) -> None:
        """Let the lock go, unless a successor shares it; the file stays."""
        self._descriptor.close()


def claim(path: str) -> PidFile:
    """The file, made if it is missing, locked, with our number in it. Raises ConfigError if another process has it, and
    has made no file then."""
    try:
        with hold(path) as place:
            while True:
                file = _lock(place, path)
                if file is not None:
                    return file
    except OSError as exc:
        raise _refused(path, reason_of(exc)) from None


def _lock(place: Place, path: str) -> PidFile | None:
    """Our pidfile; None where the process that had it has removed it meanwhile."""
    made, file = _open(place, path)
    with contextlib.ExitStack() as undo:
        # What we have made is ours to remove, and nobody else's yet.
        undo.callback(file.remove if made else file.close)
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is not a regular file")
        if found.st_nlink > 1:
            # Put there by the workers' user, it may be another program's pidfile.
            raise _refused(path, "it has another name besides (a hard link)")
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            undo.pop_all()
            content = os.pread(file.fileno(), 32, 0).decode("ascii", "replace").strip()
            file.close()
            raise _refused(
                path, f"another supervisor has it{f' ({escape_controls(content)})' if content else ''}"
            ) from None
        # Removed between our opening and our locking it is nobody's any more.
        if not _is_at(file.fileno(), place):
            return None
        _require_number(file, path)
        undo.pop_all()
    file.write()
    return file


def _open(place: Place, path: str) -> tuple[bool, PidFile]:
    """Whether we have made it, and the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
    with contextlib.suppress(FileExistsError):
        return True, PidFile(path, place.open(flags | os.O_EXCL, 0o644))
    return False, PidFile(path, place.open(flags, 0o644))


def _require_number(file: PidFile, path: str) -> None:
    """What is in it goes: not if it is somebody's text."""
    content = os.pread(file.fileno(), 64, 0)
    if not re.fullmatch(rb"\s*[0-9]{0,20}\s*", content):
        raise _refused(path, "it holds something else than a number; remove it yourself if it is not needed")


def _is_at(fd: int, place: Place) -> bool:
    try:
        return same(os.fstat(fd), place.look())
    except FileNotFoundError:
        return False


def _refused(path: str, reason: str) -> ConfigError:
    return ConfigError(f"--pidfile {escape_controls(path)}: {reason}")
