"""Unix sockets and their files: bound, given a mode, and removed, without touching a file that is not the socket's.

Every file is reached by a descriptor of its folder (`paths.py`), and is the socket's own if the kernel says so
(sock_diag(7)), not because it stands under the right name: a user who may write to the folder can exchange files in it
at any moment. Who may connect, and who accepts, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..addresses import UNIX_PATH_LIMIT
from ..errors import BindError
from .paths import Place, hold, insist, locate, through

#: Seconds for which somebody else's lock on a folder is waited for. It is not obeyed for longer.
LOCK_TIMEOUT = 1.0

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _NLMSG_ERROR = 4, 20, 1, 2
_UDIAG_SHOW_VFS, _UNIX_DIAG_VFS, _ANY = 2, 1, 2**32 - 1
_HEADER, _MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBIII"), struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class File:
    """The file of a unix socket that we bound."""

    path: str
    """Absolute: the supervisor may be in another folder when it removes it."""
    device: int
    inode: int

    def remove(self) -> None:
        """Unless another one has taken its place. Raises nothing."""
        insist(self._remove)

    def _remove(self) -> None:
        with hold(self.path) as place:
            if self._is(place.look()):
                place.unlink()

    def is_there(self) -> bool:
        """Whether the path still is this file."""
        with contextlib.suppress(OSError):
            self.look()
            return True
        return False

    def look(self) -> os.stat_result:
        """Its mode and its owners. Raises OSError (ENOENT) where the path is not this file any more."""
        with hold(self.path) as place:
            found = place.look()
        if not self._is(found):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def give_to(self, mode: int, gid: int | None) -> None:
        """Let those in, unless another file has taken its place. Failing costs nothing that was there."""
        with contextlib.suppress(OSError), hold(self.path) as place, _opened(place) as (path, found):
            if self._is(found):
                if gid is not None:
                    os.chown(path, -1, gid)
                os.chmod(path, mode)

    def _is(self, found: os.stat_result) -> bool:
        return stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == (self.device, self.inode)


def bind_unix_socket(path: str | os.PathLike[str], mode: int = 0o600, backlog: int = 128) -> socket.socket:
    """A listening, non-blocking, close-on-exec unix socket at `path`, whose file never is more open than `mode`.

    A stale socket file, one that nobody listens on, is replaced. A live one is not, nor a file of another kind:
    BindError. The caller owns the socket, and the file.
    """
    sock, _ = bind_with_file(path, mode, backlog)
    return sock


def bind_with_file(path: str | os.PathLike[str], mode: int, backlog: int) -> tuple[socket.socket, File]:
    """`bind_unix_socket`, with the file that it has. Nothing is left where it fails."""
    name = os.fspath(path)
    if not name or "\0" in name:
        raise BindError(f"unix:{name}".replace("\0", "@"), errno.EINVAL, "a path in the file system is needed")
    if len(os.fsencode(name)) > UNIX_PATH_LIMIT:
        raise BindError(f"unix:{name}", errno.ENAMETOOLONG, f"the limit is {UNIX_PATH_LIMIT} bytes")
    try:
        with hold(name) as place, _alone_in(place):
            _remove_stale(place, name)
            return _bind(place, name, mode, backlog)
    except BindError:
        raise
    except OSError as exc:
        cure = exc.strerror if exc.errno == errno.ELOOP and exc.strerror else ""
        cure = "another process bound it just now" if exc.errno == errno.EADDRINUSE else cure
        raise BindError(f"unix:{name}", exc.errno or 0, cure) from exc


def connect(sock: socket.socket, path: str) -> None:
    """Connect to what listens at `path`. Raises OSError: also where root would follow a link that another user can
    change, which may lead to any server of root's."""
    if not hasattr(os, "O_PATH"):
        sock.connect(path)
        return
    with contextlib.closing(locate(path)) as file:
        sock.connect(through(file.fileno(), path))


def remove_stale_socket(path: str) -> bool:
    """Remove the file of a unix socket that nobody listens on; whether somebody does. Anything else is left alone."""
    with contextlib.suppress(OSError), hold(path) as place, _alone_in(place):
        try:
            _remove_stale(place, path)
        except BindError as exc:
            return exc.errno == errno.EADDRINUSE
    return False


@contextlib.contextmanager
def _alone_in(place: Place) -> Iterator[None]:
    """Keep others of our kind out of the folder for a moment: of two that find the same stale file, the second would
    remove what the first has just bound."""
    try:
        folder = place.open_folder()
    except OSError:
        # Without read permission there is no lock.
        yield
        return
    with contextlib.closing(folder):
        deadline = time.monotonic() + LOCK_TIMEOUT
        while time.monotonic() < deadline:
            try:
                fcntl.flock(folder.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno != errno.EWOULDBLOCK:
                    break
                time.sleep(0.005)
        yield


def _bind(place: Place, name: str, mode: int, backlog: int) -> tuple[socket.socket, File]:
    with contextlib.ExitStack() as undo:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(sock.close)
        # On Linux the file gets the mode of the socket's own inode, less the umask. It is set before there is a file,
        # so there is no moment at which the file is too open, as there is with a chmod after bind.
        os.fchmod(sock.fileno(), mode)
        sock.bind(name if place.address() == place.path else place.address())
        found = place.look()
        if not _is_file_of(sock, found):
            raise BindError(f"unix:{name}", errno.EBUSY, "another file was put in its place while it was bound")
        file = File(place.path, found.st_dev, found.st_ino)
        undo.callback(file.remove)
        if stat.S_IMODE(found.st_mode) != mode:
            # The umask took bits away; this only ever opens the file as far as was asked for.
            file.give_to(mode, None)
        sock.setblocking(False)
        sock.listen(backlog)
        undo.pop_all()
    return sock, file


def _is_file_of(sock: socket.socket, found: os.stat_result) -> bool:
    """Whether `found` is the file that `sock` is bound to, as the kernel says. Where it does not say, a fresh socket of
    this user that has one name must do."""
    if not stat.S_ISSOCK(found.st_mode):
        return False
    told = _inode_of(sock)
    if told is None:
        return found.st_uid == os.geteuid() and found.st_nlink == 1
    return told == found.st_ino & _ANY


def _inode_of(sock: socket.socket) -> int | None:
    """The number of the file of a bound unix socket, as the kernel says (sock_diag(7), UNIX_DIAG_VFS); None where it
    cannot be asked: no such module, a sandbox, another system.

    It says the device, too, but stat(2) tells another one on btrfs and overlayfs. In one folder the number is enough.
    """
    inode = os.fstat(sock.fileno()).st_ino & _ANY
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_VFS, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with socket.socket(getattr(socket, "AF_NETLINK", -1), socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
            netlink.sendto(header + request, (0, 0))
            # The kernel answers within the call that asks (netlink(7)).
            answer = netlink.recv(8192, socket.MSG_DONTWAIT)
    except OSError:
        return None
    return _vfs(answer)


def _vfs(answer: bytes) -> int | None:
    length, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _MESSAGE.size
    while at + _ATTRIBUTE.size <= min(length, len(answer)):
        size, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _UNIX_DIAG_VFS:
            inode: int = struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0]
            return inode
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
    return None


def _remove_stale(place: Place, name: str) -> None:
    """Raises BindError for anything but a socket that nobody listens on."""
    try:
        with _opened(place) as (path, found):
            if not stat.S_ISSOCK(found.st_mode):
                cure = "it is not a socket; remove it yourself if it is not needed"
                raise BindError(f"unix:{name}", errno.EEXIST, cure)
            if _answers(path):
                raise BindError(f"unix:{name}", errno.EADDRINUSE, "a process listens on it; stop that one first")
    except FileNotFoundError:
        return
    # Only the file that was looked at: another server may have replaced it meanwhile.
    File(place.path, found.st_dev, found.st_ino).remove()


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[tuple[str, os.stat_result]]:
    """A path that leads to the very file that stands at `place` now, whatever is put there later, and what it is.

    For connect(2), chown(2) and chmod(2), which take no descriptor, or none of this kind (open(2), O_PATH).
    """
    if not hasattr(os, "O_PATH"):
        yield place.path, place.look()
        return
    with contextlib.closing(place.open(os.O_PATH)) as file:
        yield through(file.fileno(), place.path), os.fstat(file.fileno())


def _answers(name: str) -> bool:
    """Whether somebody listens: only a refused connection says that nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except OSError as exc:
            return exc.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True
