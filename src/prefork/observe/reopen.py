"""Log files that were moved away: standard output and error, if they are files, are opened again under their names.

For `prefork serve ... 2>> file` and a rotation that renames the file and sends USR1. Pipes and terminals are left
alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Mapping

from ..events import ReopenFailed
from ..system.descriptors import Descriptor
from ..system.paths import Place, hold, require_regular
from ..text import escape_controls


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
                with hold(path) as place, contextlib.closing(_open(place, os.fstat(fd))) as new:
                    os.dup2(new.fileno(), fd, inheritable=True)
            except OSError as exc:
                emit(ReopenFailed(escape_controls(path), (exc.strerror or str(exc)).lower()))


def _open(place: Place, before: os.stat_result) -> Descriptor:
    """The file at `place`, made if it is missing, with the owner and the mode of the one before.

    The folder may belong to the workers' user, and a link in it would have root write to any file (the class of
    CVE-2016-1247): no link is followed, and a file of another owner, or of two names, is refused. O_NONBLOCK, as a FIFO
    in its place would hold this process for ever.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
    # Without set-user-ID, which the owner of the one before may have set: for a moment the new one is root's.
    mode = before.st_mode & 0o666
    try:
        new = place.open(flags | os.O_CREAT | os.O_EXCL, mode)
        if os.fstat(new.fileno()).st_uid != before.st_uid:
            # Ours to give: the next rotation, and a worker, would refuse it otherwise.
            with contextlib.suppress(OSError):
                os.fchown(new.fileno(), before.st_uid, before.st_gid)
        return new
    except FileExistsError:
        new = place.open(flags)
    try:
        found = os.fstat(new.fileno())
        require_regular(found)
        if found.st_uid != before.st_uid:
            raise OSError(errno.EPERM, f"it belongs to uid {found.st_uid}, the one before to uid {before.st_uid}")
        if found.st_nlink > 1:
            raise OSError(errno.EPERM, "it has another name besides (a hard link)")
    except OSError:
        new.close()
        raise
    return new


def _file_at(fd: int) -> str:
    """The path of a regular file; "" for anything else, and for one that has lost its name."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        found = os.fstat(fd)
        return path if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)) else ""
    except OSError:
        return ""
