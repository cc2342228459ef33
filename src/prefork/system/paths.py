"""Reach files by descriptor, one directory at a time, so that no other user can put a link or a directory in the way.

There are two rules for two kinds of files:

* `resolve` reaches a file that this process makes, changes or removes. It opens the directory, and never follows a
  symbolic link that another user can change. So a directory of the workers' user is harmless.
* `read` and `weaknesses` look at a file that this process believes or runs. They follow links, and report each
  directory, link and file on the way that another user can change.

The callers decide what follows from a weakness. Not `openat2(RESOLVE_NO_SYMLINKS)`, because it refuses /var/run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..core.trust import Weakness, weakness, weakness_of_entry
from .descriptors import Descriptor

#: How often `retry` tries to remove a file.
ATTEMPTS = 3
#: Symbolic links that are followed in one path; the kernel's own limit (path_resolution(7)).
MAX_LINKS = 40
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else os.O_RDONLY
#: Opens a file without reading it.
_STAT_ONLY = os.O_PATH if hasattr(os, "O_PATH") else os.O_RDONLY | os.O_NONBLOCK
#: Where relative paths start; "" for the current directory. State of the process, as the current directory is.
_base = ""


class Entry:
    """A name in an open directory (openat(2)). `resolve` opens and closes the directory.

    Every method raises OSError as its system call does, and acts on the name itself, never on what a link points to.
    """

    def __init__(self, path: str, directory: Descriptor, name: str, exposed: bool) -> None:
        self.path = path
        """The path that was given, made absolute."""
        self.name = name
        self._directory = directory
        self._exposed = exposed
        """Whether another user can replace the directory, so that its path may lead elsewhere the next time."""

    def stat(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self._directory.fileno(), follow_symlinks=False)

    def open(self, flags: int, mode: int = 0o600) -> Descriptor:
        """Open the file, or create it if `flags` say so. Raises OSError (ELOOP) for a symbolic link."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return Descriptor(os.open(self.name, flags, mode, dir_fd=self._directory.fileno()))

    def open_directory(self) -> Descriptor:
        """Open the directory for reading, because flock(2) does not accept an O_PATH descriptor."""
        return Descriptor(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory.fileno()))

    def mkdir(self, mode: int) -> None:
        os.mkdir(self.name, mode, dir_fd=self._directory.fileno())

    def unlink(self) -> None:
        os.unlink(self.name, dir_fd=self._directory.fileno())

    def bind_path(self) -> str:
        """Return a path for bind(2), which takes no descriptor.

        It is the plain path, which peers see (getsockname), unless another user could have replaced one of its
        directories since they were opened.
        """
        directory = proc_path(self._directory.fileno(), "")
        return f"{directory}/{self.name}" if self._exposed and directory else self.path


@contextlib.contextmanager
def resolve(path: str | os.PathLike[str]) -> Iterator[Entry]:
    """Open the directory of `path` for the block. The name itself may be missing. Raises OSError.

    As root, do not follow a symbolic link that another user can change (ELOOP). Otherwise root would create, change or
    remove any file that a link of the workers' user names.
    """
    # Another user has no less privileged user to be protected from.
    strictly = os.geteuid() == 0
    with contextlib.closing(_Walk(absolute(path))) as walk:
        name = walk.to_directory(strictly)
        directory = walk.detach()
    with contextlib.closing(directory):
        yield Entry(walk.path, directory, name, exposed=strictly and bool(walk.weak))


def open_path(path: str | os.PathLike[str]) -> Descriptor:
    """Open the file at `path` with O_PATH (open(2)), through the links that `resolve` would follow. Raises OSError."""
    with contextlib.closing(_Walk(absolute(path))) as walk:
        return walk.to_file(_STAT_ONLY, strictly=os.geteuid() == 0)


def proc_path(fd: int, fallback: str) -> str:
    """Return a path that leads to the open file `fd` even if its name is replaced later; `fallback` without /proc."""
    path = f"/proc/self/fd/{fd}"
    return path if os.path.lexists(path) else fallback


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file, and the reasons not to trust it."""

    data: bytes
    weaknesses: tuple[Weakness, ...]


def read(path: str | os.PathLike[str], max_bytes: int) -> Content:
    """Read a regular file through any links, and report how other users could have changed it.

    The open descriptor is judged, not the path. Raises OSError, also for a file that is not regular or is larger than
    `max_bytes`.
    """
    with _opened(path) as (fd, weak), open(fd.fileno(), "rb", closefd=False) as file:
        data = file.read(max_bytes + 1)
    _require_size(len(data), max_bytes)
    return Content(data, tuple(weak))


@contextlib.contextmanager
def reading_secret(path: str | os.PathLike[str], max_bytes: int) -> Iterator[tuple[bytearray, tuple[Weakness, ...]]]:
    """Yield what `read` returns, for the block: afterwards the content is overwritten with zeros. Raises OSError."""
    secret = bytearray(max_bytes + 1)
    try:
        with _opened(path) as (fd, weak):
            filled = 0
            while filled <= max_bytes and (got := os.readv(fd.fileno(), [memoryview(secret)[filled:]])):
                filled += got
        _require_size(filled, max_bytes)
        # What is cut off has never held anything.
        del secret[filled:]
        yield secret, tuple(weak)
    finally:
        secret[:] = bytes(len(secret))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Descriptor, list[Weakness]]]:
    """Open a regular file for reading, for the block, and report how other users could have changed it."""
    with (
        contextlib.closing(_Walk(absolute(path))) as walk,
        contextlib.closing(walk.to_file(os.O_RDONLY | os.O_NONBLOCK)) as fd,
    ):
        require_regular(os.fstat(fd.fileno()))
        yield fd, walk.weak


def _require_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")


def weaknesses(path: str | os.PathLike[str]) -> tuple[Weakness, ...]:
    """Return how other users can change the file or directory at `path`, or one on the way to it. Raises OSError."""
    with contextlib.closing(_Walk(absolute(path))) as walk, contextlib.closing(walk.to_file(_STAT_ONLY)):
        return tuple(walk.weak)


def file_weaknesses(path: str) -> tuple[Weakness, ...]:
    """Return the weaknesses of a file only, when its directory was checked before; of the whole path if it is a link.

    Raises OSError.
    """
    found = os.stat(path, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return weaknesses(path)
    weak = weakness(path, found, os.geteuid(), _has_acl(path, found))
    return () if weak is None else (weak,)


def require_regular(found: os.stat_result) -> None:
    """Raise OSError for any other kind: a FIFO would block this process for ever, a device would fill its memory."""
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, "is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def retry(remove: Callable[[], object]) -> None:
    """Call `remove` up to ATTEMPTS times, in case the system lacks a resource for a moment. Raises nothing.

    For the last chance to remove a file.
    """
    for _ in range(ATTEMPTS):
        try:
            remove()
            return
        except FileNotFoundError:
            return
        except OSError:
            continue


def absolute(path: str | os.PathLike[str]) -> str:
    """Return `path` made absolute, with its links and dots. Raises OSError if the current directory is gone."""
    text = os.fspath(path)
    return text if os.path.isabs(text) else f"{logical_directory()}/{text}"


def set_base_directory(directory: str) -> None:
    """Resolve relative paths from `directory` from now on; from the current directory if it is "", as at first.

    Not by chdir(2): when a supervisor changes to a path again, another user may have replaced a link or directory in
    it. A path from the root is checked at each use.
    """
    global _base
    _base = directory


def logical_directory() -> str:
    """Return the base directory, or the current one as the shell names it ($PWD, with its symbolic links).

    Raises OSError if the current directory is gone.
    """
    if _base:
        return _base
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    return os.getcwd()


class _Walk:
    """Walks from the root to `path`. Each directory stays open while the next one is looked up in it.

    `weak` collects what another user could change on the way. `close` it, or `detach` the last directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.weak: list[Weakness] = []
        self._own = os.geteuid()
        self._parts = _parts(path)
        self._links = 0
        self._directories: list[tuple[str, Descriptor]] = [("", Descriptor(os.open("/", _DIRECTORY)))]

    def close(self) -> None:
        for _, directory in self._directories:
            directory.close()
        self._directories.clear()

    def detach(self) -> Descriptor:
        """Return the directory that the walk has reached, which the caller owns, and close the others."""
        _, directory = self._directories.pop()
        self.close()
        return directory

    def to_directory(self, strictly: bool) -> str:
        """Walk to the directory of the last name, and return that name."""
        while len(self._parts) > 1 or self._parts == [".."]:
            self._step(strictly)
        if not self._parts:
            raise OSError(errno.EISDIR, "is a directory")
        return self._parts[0]

    def to_file(self, flags: int, strictly: bool = False) -> Descriptor:
        """Walk to the last name, through links, and open it with `flags`."""
        while True:
            while len(self._parts) > 1 or self._parts == [".."]:
                self._step(strictly)
            name = self._parts[0] if self._parts else "."
            text, directory = self._directories[-1]
            found = os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                break
            self._follow(strictly)
        fd = Descriptor(os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fileno()))
        try:
            opened = os.fstat(fd.fileno())
            self._check_entry(opened)
            at = f"{text}/{name}" if name != "." else text or "/"
            self._add(weakness(at, opened, self._own, _has_acl(fd.fileno(), opened)))
        except BaseException:
            fd.close()
            raise
        return fd

    def _step(self, strictly: bool) -> None:
        """Open the next directory of the path, or insert the target of a symbolic link into the path."""
        part = self._parts[0]
        text, directory = self._directories[-1]
        if part == "..":
            self._parts.pop(0)
            if len(self._directories) > 1:
                self._directories.pop()[1].close()
            return
        found = os.stat(part, dir_fd=directory.fileno(), follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            self._follow(strictly)
            return
        child = Descriptor(os.open(part, _DIRECTORY, dir_fd=directory.fileno()))
        self._parts.pop(0)
        self._check_entry(os.fstat(child.fileno()))
        self._directories.append((f"{text}/{part}", child))

    def _follow(self, strictly: bool) -> None:
        part = self._parts.pop(0)
        text, directory = self._directories[-1]
        found = os.stat(part, dir_fd=directory.fileno(), follow_symlinks=False)
        weak = self._check_entry(found)
        if weak is not None and strictly:
            raise OSError(errno.ELOOP, f"{text}/{part} is a symbolic link that another user can change")
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(part, dir_fd=directory.fileno())
        self._parts = _parts(target) + self._parts
        if os.path.isabs(target):
            while len(self._directories) > 1:
                self._directories.pop()[1].close()

    def _check_entry(self, entry: os.stat_result) -> Weakness | None:
        """Return the reason why another user can replace `entry`, a file in the last directory; None if none can."""
        text, directory = self._directories[-1]
        status = os.fstat(directory.fileno())
        found = weakness_of_entry(text or "/", status, entry, self._own, _has_acl(directory.fileno(), status))
        self._add(found)
        return found

    def _add(self, found: Weakness | None) -> None:
        if found is not None and found not in self.weak:
            self.weak.append(found)


def _has_acl(file: int | str, found: os.stat_result) -> bool:
    """Return whether a file, open or named, has an access list (acl(5)) that may let others write, or may have one."""
    if not found.st_mode & stat.S_IWGRP or not hasattr(os, "getxattr"):
        return False
    try:
        # By a path in any case, because the descriptor may be an O_PATH one.
        return bool(os.getxattr(proc_path(file, "") if isinstance(file, int) else file, "system.posix_acl_access"))
    except OSError as exc:
        return exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
