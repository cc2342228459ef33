"""Open log files, and reopen them after a rotation, which renames a file and sends USR1.

Standard output and error have a name if they are regular files, as with `prefork serve ... 2>> file`; pipes and
terminals have none. The file of the access log is opened here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
        self._opened: dict[str, Descriptor] = {}
        """Files that were opened here, by path. A successor opens its own."""

    def open(self, path: str, uid: int, gid: int) -> int:
        """Open a file for appending, and return its descriptor, which stays the same when the file is reopened.

        A new file belongs to `uid` and `gid`, because processes with these have to open it again. Raises OSError, also
        for a file that belongs to neither `uid` nor the user of this process.
        """
        with resolve(path) as entry:
            opened = self._opened[path] = _open(entry, _Wanted(0o640, uid, gid), (uid, os.geteuid()))
        return opened.fileno()

    def reopen(self, emit: Callable[[ReopenFailed], object]) -> None:
        """Open each path again and replace its descriptor, so that every writer to the descriptor uses the new file."""
        files = [*self.paths.items(), *((opened.fileno(), path) for path, opened in self._opened.items())]
        for fd, path in files:
            try:
                before = _Wanted.as_of(os.fstat(fd))
                with resolve(path) as entry, contextlib.closing(_open(entry, before, (before.uid,))) as new:
                    os.dup2(new.fileno(), fd, inheritable=fd in self.paths)
            except OSError as exc:
                emit(ReopenFailed(escape_controls(path), reason_of(exc)))


class _Wanted(NamedTuple):
    """The permissions and the owner of a file that is made."""

    mode: int
    uid: int
    gid: int

    @classmethod
    def as_of(cls, file: os.stat_result) -> _Wanted:
        # Without set-user-ID, which the old file's owner may have set, because for a moment the new file is root's.
        return cls(file.st_mode & 0o666, file.st_uid, file.st_gid)


def _open(entry: Entry, wanted: _Wanted, owners: tuple[int, ...]) -> Descriptor:
    """Open the file at `entry`; create it as it is `wanted` if it is missing. One of `owners` must have it.

    The directory may belong to the workers' user, who could make root write to any file by a link (the class of
    CVE-2016-1247). So no link is followed, and a file with another owner or a second name is rejected. O_NONBLOCK,
    because a FIFO in its place would block this process for ever.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
    try:
        new = entry.open(flags | os.O_CREAT | os.O_EXCL, wanted.mode)
        if os.fstat(new.fileno()).st_uid != wanted.uid:
            # Otherwise the next rotation, and each worker, would reject it.
            with contextlib.suppress(OSError):
                os.fchown(new.fileno(), wanted.uid, wanted.gid)
        return new
    except FileExistsError:
        new = entry.open(flags)
    try:
        found = os.fstat(new.fileno())
        require_regular(found)
        if found.st_uid not in owners:
            wanted_of = f"uid {wanted.uid} is expected"
            raise OSError(errno.EPERM, f"it belongs to uid {found.st_uid}, {wanted_of}")
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
