"""The pidfile: holds the supervisor's pid, and is locked while the supervisor runs.

Only the lock matters. A pid that was left behind means nothing, and is never signalled.
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
from .paths import Entry, absolute, resolve, retry


class PidFile:
    """Owns the file at `path` by the lock on a descriptor.

    A successor may share the lock, because it belongs to the open file description (flock(2)).
    """

    def __init__(self, path: str, descriptor: Descriptor, inherited: bool = False) -> None:
        self.inherited = inherited
        # Absolute, because the supervisor may have changed its directory when it removes the file.
        self.path = absolute(path)
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor.fileno()

    def write(self) -> str | None:
        """Write this process's pid. Return the reason if that fails, else None.

        A full disk then costs the pid, not the service; the pid of another process is removed all the same.
        """
        line = f"{os.getpid()}\n".encode()
        try:
            # In this order the first line is a pid at every moment.
            os.pwrite(self.fileno(), line, 0)
            os.ftruncate(self.fileno(), len(line))
        except OSError as exc:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fileno(), 0)
            return reason_of(exc)
        return None

    def remove(self) -> None:
        """Remove the file if it still is the locked one, and release the lock."""
        retry(self._remove)
        self.close()

    def _remove(self) -> None:
        with resolve(self.path) as entry:
            if _is_at(self.fileno(), entry):
                entry.unlink()

    def close(self) -> None:
        """Release the lock, unless a successor shares it; keep the file."""
        self._descriptor.close()


def claim(path: str) -> PidFile:
    """Lock the file, created if it is missing, and write this process's pid.

    Raises ConfigError if another process holds it; no file is created then.
    """
    try:
        with resolve(path) as entry:
            while True:
                file = _lock(entry, path)
                if file is not None:
                    return file
    except OSError as exc:
        raise _rejected(path, reason_of(exc)) from None


def _lock(entry: Entry, path: str) -> PidFile | None:
    """Return the locked pidfile; None if its previous owner has removed it meanwhile."""
    created, file = _open(entry, path)
    with contextlib.ExitStack() as undo:
        # A file that was created here has no other owner yet, so it can be removed.
        undo.callback(file.remove if created else file.close)
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _rejected(path, "it is not a regular file")
        if found.st_nlink > 1:
            # The workers' user may have linked another program's pidfile to this name.
            raise _rejected(path, "it has a second name (a hard link)")
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            undo.pop_all()
            pid = os.pread(file.fileno(), 32, 0).decode("ascii", "replace").strip()
            file.close()
            raise _rejected(path, f"another supervisor has it{f' ({escape_controls(pid)})' if pid else ''}") from None
        # If it was removed after it was opened and before it was locked, this lock protects nothing.
        if not _is_at(file.fileno(), entry):
            return None
        _require_pid(file, path)
        undo.pop_all()
    file.write()
    return file


def _open(entry: Entry, path: str) -> tuple[bool, PidFile]:
    """Return whether the file was created, and the file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK
    with contextlib.suppress(FileExistsError):
        return True, PidFile(path, entry.open(flags | os.O_EXCL, 0o644))
    return False, PidFile(path, entry.open(flags, 0o644))


def _require_pid(file: PidFile, path: str) -> None:
    """Raise ConfigError if the file holds other text, because its content will be overwritten."""
    content = os.pread(file.fileno(), 64, 0)
    if not re.fullmatch(rb"\s*[0-9]{0,20}\s*", content):
        raise _rejected(path, "it does not hold a pid; remove it yourself if it is not needed")


def _is_at(fd: int, entry: Entry) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), entry.stat())
    except FileNotFoundError:
        return False


def _rejected(path: str, reason: str) -> ConfigError:
    return ConfigError(f"--pidfile {escape_controls(path)}: {reason}", option="--pidfile")
