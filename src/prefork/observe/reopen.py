"""Log files that were moved away: standard output and error, if they are files, are opened again under their names.

For `prefork serve ... 2>> file` and a rotation that renames the file and sends USR1. Pipes and terminals are left
alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping

from ..events import ReopenFailed, visible
from ..system.files import require_regular


class LogFiles:
    """The names that descriptors 1 and 2 had at the start, or those that were `inherited`, whatever they are called by
    now. Workers get them with the fork."""

    def __init__(self, inherited: Mapping[int, str] | None = None) -> None:
        found = {fd: path for fd in (1, 2) if (path := _file_at(fd))}
        self.paths = found if inherited is None else dict(inherited)

    def reopen(self, emit: Callable[[ReopenFailed], object]) -> None:
        """Open them again, each in place of the old one: all who write to the number write to the new file."""
        for fd, path in self.paths.items():
            try:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                # Without waiting: in the file's place there may be a FIFO by now.
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
                new = os.open(path, flags, mode)
                try:
                    require_regular(new)
                    os.dup2(new, fd, inheritable=True)
                finally:
                    os.close(new)
            except OSError as exc:
                emit(ReopenFailed(visible(path), (exc.strerror or str(exc)).lower()))


def _file_at(fd: int) -> str:
    """The path of a regular file; "" for anything else, and for one that has lost its name."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        found = os.fstat(fd)
        return path if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)) else ""
    except OSError:
        return ""
