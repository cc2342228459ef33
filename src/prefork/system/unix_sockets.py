"""Unix sockets and their files: bind, set the mode, remove; never touch a file that is not the socket's own.

Every file is reached by a descriptor of its directory (paths.py). It is the socket's own if the kernel says so
(sock_diag(7)), not because it has the right name: a user who may write to the directory can exchange files in it at any
moment. Accepting does not belong here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..addresses import UNIX_PATH_LIMIT
from ..errors import BindError
from .listen_options import ListenOptions
from .paths import Entry, open_path, proc_path, resolve, retry
from .sock_diag import file_inode

#: Seconds to wait for another process's lock on a directory. After that the lock is ignored, otherwise any user who can
#: read the directory could keep this server from starting.
LOCK_TIMEOUT = 1.0
#: The kernel tells this many bits of an inode number.
_KNOWN_BITS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class File:
    """The file of a unix socket that this server bound."""

    path: str
    """Absolute, because the supervisor may be in another directory when it removes the file."""
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another one has its name by now. Raises nothing."""
        retry(self._remove)

    def _remove(self) -> None:
        with resolve(self.path) as entry:
            if self._is(entry.stat()):
                entry.unlink()

    def exists(self) -> bool:
        with contextlib.suppress(OSError):
            self.stat()
            return True
        return False

    def stat(self) -> os.stat_result:
        """Return its mode and owners. Raises OSError (ENOENT) if the path leads to another file by now."""
        with resolve(self.path) as entry:
            found = entry.stat()
        if not self._is(found):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def set_access(self, mode: int, gid: int | None) -> None:
        """Set the mode, and the group if given, unless another file has its name by now. A failure changes nothing."""
        with contextlib.suppress(OSError), resolve(self.path) as entry, _opened(entry) as (path, found):
            if self._is(found):
                if gid is not None:
                    os.chown(path, -1, gid)
                os.chmod(path, mode)

    def _is(self, found: os.stat_result) -> bool:
        return stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == (self.device, self.inode)


def bind_unix_socket(path: str | os.PathLike[str], mode: int = 0o600, backlog: int = 128) -> socket.socket:
    """Return a listening, non-blocking, close-on-exec unix socket at `path`. Its file is never more open than `mode`.

    A stale socket file, one without a listener, is replaced. Raises BindError for one with a listener, and for a file
    of another kind. The caller owns the socket and the file.

    A name with a leading NUL is one of the abstract namespace (Linux, unix(7)): it has no file, any local user can
    connect, and it is free again once the socket is closed.
    """
    name = os.fspath(path)
    options = ListenOptions(backlog, mode=mode)
    return _bind_abstract(name, options) if name.startswith("\0") else bind_with_file(name, options)[0]


def bind_with_file(
    path: str | os.PathLike[str], options: ListenOptions, lock_timeout: float = LOCK_TIMEOUT
) -> tuple[socket.socket, File]:
    """Do as `bind_unix_socket`, only for paths, and return the file as well. Leave nothing behind on failure.

    Wait for up to `lock_timeout` seconds for another process's lock on the directory.
    """
    name = os.fspath(path)
    if not name or "\0" in name:
        raise BindError(_printed(name), errno.EINVAL, "a path in the file system is needed")
    if len(os.fsencode(name)) > UNIX_PATH_LIMIT:
        raise BindError(f"unix:{name}", errno.ENAMETOOLONG, f"the limit is {UNIX_PATH_LIMIT} bytes")
    try:
        with resolve(name) as entry, _locked(entry, lock_timeout):
            _remove_stale(entry, name)
            return _bind(entry, name, options)
    except BindError:
        raise
    except OSError as exc:
        cure = exc.strerror if exc.errno == errno.ELOOP and exc.strerror else ""
        cure = "another process bound it just now" if exc.errno == errno.EADDRINUSE else cure
        raise BindError(f"unix:{name}", exc.errno or 0, cure) from exc


def _bind_abstract(name: str, options: ListenOptions) -> socket.socket:
    if sys.platform != "linux":
        raise BindError(_printed(name), errno.EINVAL, "only Linux has an abstract namespace")
    # The leading NUL counts, the one that ends a path does not: one byte more than a path may have.
    if len(os.fsencode(name)) > UNIX_PATH_LIMIT + 1:
        raise BindError(_printed(name), errno.ENAMETOOLONG, f"the limit is {UNIX_PATH_LIMIT} bytes")
    with contextlib.ExitStack() as undo:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(sock.close)
            sock.bind(name)
            options.apply(sock)
        except OSError as exc:
            cure = "a process listens on it; stop that one first" if exc.errno == errno.EADDRINUSE else ""
            raise BindError(_printed(name), exc.errno or 0, cure) from exc
        undo.pop_all()
    return sock


def _printed(name: str) -> str:
    return f"unix:{name}".replace("\0", "@")


def connect(sock: socket.socket, path: str) -> None:
    """Connect to the listener at `path`. Raises OSError.

    As root, also raise it for a symbolic link that another user can change: it may lead to any server of root's.
    """
    if not hasattr(os, "O_PATH"):
        sock.connect(path)
        return
    with contextlib.closing(open_path(path)) as file:
        sock.connect(proc_path(file.fileno(), path))


def remove_stale_socket(path: str) -> bool:
    """Remove the file of a unix socket without a listener, and nothing else. Return whether there is a listener."""
    with contextlib.suppress(OSError), resolve(path) as entry, _locked(entry, LOCK_TIMEOUT):
        try:
            _remove_stale(entry, path)
        except BindError as exc:
            return exc.errno == errno.EADDRINUSE
    return False


@contextlib.contextmanager
def _locked(entry: Entry, timeout: float) -> Iterator[None]:
    """Lock the directory against other servers that bind in it: of two that find the same stale file, the second would
    remove what the first has just bound."""
    try:
        directory = entry.open_directory()
    except OSError:
        # Without read permission there is no lock.
        yield
        return
    with contextlib.closing(directory):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                fcntl.flock(directory.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno != errno.EWOULDBLOCK:
                    break
                time.sleep(0.005)
        yield


def _bind(entry: Entry, name: str, options: ListenOptions) -> tuple[socket.socket, File]:
    with contextlib.ExitStack() as undo:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(sock.close)
        # On Linux the file gets the mode of the socket's own inode, less the umask. Set before there is a file, because
        # with chmod(2) after bind(2) the file would be too open for a moment.
        os.fchmod(sock.fileno(), options.mode)
        sock.bind(name if entry.bind_path() == entry.path else entry.bind_path())
        found = entry.stat()
        if not _is_file_of(sock, found):
            raise BindError(f"unix:{name}", errno.EBUSY, "another file replaced it while it was bound")
        file = File(entry.path, found.st_dev, found.st_ino)
        undo.callback(file.remove)
        if stat.S_IMODE(found.st_mode) != options.mode:
            # The umask took bits away. This opens the file no further than the mode.
            file.set_access(options.mode, None)
        options.apply(sock)
        undo.pop_all()
    return sock, file


def _is_file_of(sock: socket.socket, found: os.stat_result) -> bool:
    """Return whether `found` is the file that `sock` is bound to, by what the kernel says.

    If the kernel does not say, accept any socket file of this user that has a single name.
    """
    if not stat.S_ISSOCK(found.st_mode):
        return False
    inode = file_inode(sock)
    if inode is None:
        return found.st_uid == os.geteuid() and found.st_nlink == 1
    return inode == found.st_ino & _KNOWN_BITS


def _remove_stale(entry: Entry, name: str) -> None:
    """Remove the file of a socket without a listener. Raises BindError for any other file."""
    try:
        with _opened(entry) as (path, found):
            if not stat.S_ISSOCK(found.st_mode):
                cure = "it is not a socket; remove it yourself if it is not needed"
                raise BindError(f"unix:{name}", errno.EEXIST, cure)
            if _has_listener(path):
                raise BindError(f"unix:{name}", errno.EADDRINUSE, "a process listens on it; stop that one first")
    except FileNotFoundError:
        return
    # Only this very file, because another server may have replaced it meanwhile.
    File(entry.path, found.st_dev, found.st_ino).remove()


@contextlib.contextmanager
def _opened(entry: Entry) -> Iterator[tuple[str, os.stat_result]]:
    """Yield a path that leads to the file that is at `entry` now, whatever replaces it later, and its stat result.

    For connect(2), chown(2) and chmod(2), which take no descriptor, or none of this kind (open(2), O_PATH).
    """
    if not hasattr(os, "O_PATH"):
        yield entry.path, entry.stat()
        return
    with contextlib.closing(entry.open(os.O_PATH)) as file:
        yield proc_path(file.fileno(), entry.path), os.fstat(file.fileno())


def _has_listener(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except OSError as exc:
            # Any other error, such as a full queue (EAGAIN), comes from a socket that has a listener.
            return exc.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True
