"""Reopen log files after a rotation: standard output and error under their names, if they are regular files.

For `prefork serve ... 2>> file` and a rotation that renames the file and sends USR1. Not for pipes and terminals.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Mapping

from ..errors import reason_of
from ..events import ReopenFailed
from ..system.descriptors import Descriptor
from ..system.paths import Entry, require_regular, resolve
from ..text import escape_controls


class LogFiles:
    """The paths that descriptors 1 and 2 had at the start, or those `inherited`. Workers get them by the fork."""

    def __init__(self, inherited: Mapping[int, str] | None = None) -> None:
        found = {fd: path for fd in (1, 2) if (path := _file_at(fd))}
        self.paths = found if inherited is None else dict(inherited)

    def reopen(self, emit: Callable[[ReopenFailed], object]) -> None:
        """Open each path again and replace its descriptor, so that every writer to the descriptor uses the new file."""
        for fd, path in self.paths.items():
            try:
                with resolve(path) as entry, contextlib.closing(_open(entry, os.fstat(fd))) as new:
                    os.dup2(new.fileno(), fd, inheritable=True)
            except OSError as exc:
                emit(ReopenFailed(escape_controls(path), reason_of(exc)))


def _open(entry: Entry, before: os.stat_result) -> Descriptor:
    """Open the file at `entry`; create it if it is missing, with the owner and the mode of the file `before` it.

    The directory may belong to the workers' user, who could make root write to any file by a link (the class of
    CVE-2016-1247). So no link is followed, and a file with another owner or a second name is rejected. O_NONBLOCK,
    because a FIFO in its place would block this process for ever.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
    # Without set-user-ID, which the old file's owner may have set, because for a moment the new file is root's.
    mode = before.st_mode & 0o666
    try:
        new = entry.open(flags | os.O_CREAT | os.O_EXCL, mode)
        if os.fstat(new.fileno()).st_uid != before.st_uid:
            # Otherwise the next rotation, and each worker, would reject it.
            with contextlib.suppress(OSError):
                os.fchown(new.fileno(), before.st_uid, before.st_gid)
        return new
    except FileExistsError:
        new = entry.open(flags)
    try:
        found = os.fstat(new.fileno())
        require_regular(found)
        if found.st_uid != before.st_uid:
            raise OSError(errno.EPERM, f"it belongs to uid {found.st_uid}, the old file to uid {before.st_uid}")
        if found.st_nlink > 1:
            raise OSError(errno.EPERM, "it has a second name (a hard link)")
    except OSError:
        new.close()
        raise
    return new


def _file_at(fd: int) -> str | None:
    """Return the path of an open regular file; None for another kind of file, and for one that was removed."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        found = os.fstat(fd)
        return path if stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path)) else None
    except OSError:
        return None
