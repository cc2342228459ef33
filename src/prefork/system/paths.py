"""Reaching files by descriptor, one folder at a time, so that nobody can put a link or another folder in the way.

Two rules for two kinds of files. What this process makes, changes or removes is reached by `hold`, which gives the
folder as a descriptor, and never follows a symbolic link that another user can change: a folder of the workers' user is
harmless then. What it believes or runs is read by `read` and judged by `weaknesses`, which follow links and tell which
folder, link or file on the way another user can change. What follows from a weakness is decided elsewhere.

Not `openat2(RESOLVE_NO_SYMLINKS)`, which refuses /var/run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..core.trust import Weakness, weakness, weakness_of_entry
from .descriptors import Descriptor

#: How often a file is tried to be removed.
ATTEMPTS = 3
#: The kernel's own bound (path_resolution(7)).
MAX_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC if hasattr(os, "O_PATH") else os.O_RDONLY
#: To open what is only looked at.
_LOOK = os.O_PATH if hasattr(os, "O_PATH") else os.O_RDONLY | os.O_NONBLOCK
#: Where relative paths start (`settle`); "" for the current folder. State of the process, as the current folder is.
_start = ""


class Place:
    """A name in a folder that is held open. `close` it, or use it as a context manager.

    Every method raises OSError as its system call does, and acts on the name itself, never on what a link points to.
    """

    def __init__(self, path: str, folder: Descriptor, name: str, exposed: bool) -> None:
        self.path = path
        """Absolute, as it was asked for."""
        self.name = name
        self._folder = folder
        self._exposed = exposed
        """Whether another user can exchange the folder itself, so that its path may lead elsewhere the next time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder (idempotent)."""
        self._folder.close()

    def look(self) -> os.stat_result:
        """What stands there now."""
        return os.stat(self.name, dir_fd=self._folder.fileno(), follow_symlinks=False)

    def open(self, flags: int, mode: int = 0o600) -> Descriptor:
        """Open it, and make it if `flags` say so. Raises OSError (ELOOP) for a symbolic link."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return Descriptor(os.open(self.name, flags, mode, dir_fd=self._folder.fileno()))

    def open_folder(self) -> Descriptor:
        """The folder, open for reading (flock(2) wants more than O_PATH)."""
        return Descriptor(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder.fileno()))

    def make_folder(self, mode: int) -> None:
        """Make a folder of that name."""
        os.mkdir(self.name, mode, dir_fd=self._folder.fileno())

    def unlink(self) -> None:
        """Remove the name."""
        os.unlink(self.name, dir_fd=self._folder.fileno())

    def address(self) -> str:
        """A path to give to bind(2), which takes no descriptor. It is the plain one, which peers see (getsockname),
        unless another user could have exchanged a folder of it since it was walked."""
        held = through(self._folder.fileno(), "")
        return f"{held}/{self.name}" if self._exposed and held else self.path


def hold(path: str | os.PathLike[str]) -> Place:
    """The folder that `path` stands in, held. The name itself may be missing. Raises OSError.

    As root, a symbolic link is followed only where nobody else can change it (ELOOP otherwise): whatever stands behind
    a link of the workers' user, root would create, change or remove it for them.
    """
    # For another user there is nobody below it to be protected from.
    strictly = os.geteuid() == 0
    walk = _Walk(absolute(path))
    try:
        name = walk.to_folder(strictly)
    except BaseException:
        walk.close()
        raise
    return Place(walk.path, walk.take(), name, exposed=strictly and bool(walk.weak))


def locate(path: str | os.PathLike[str]) -> Descriptor:
    """What stands at `path`, through the symbolic links that `hold` would follow, open for its name alone (open(2),
    O_PATH). Raises OSError."""
    walk = _Walk(absolute(path))
    with contextlib.closing(walk):
        return walk.to_file(_LOOK, strictly=os.geteuid() == 0)


def through(fd: int, otherwise: str) -> str:
    """A path that leads to what is open as `fd`, whatever is put in its place later; `otherwise` without /proc."""
    held = f"/proc/self/fd/{fd}"
    return held if os.path.lexists(held) else otherwise


@dataclass(frozen=True, slots=True)
class Content:
    """What a file held, and what makes it untrustworthy."""

    data: bytes
    weaknesses: tuple[Weakness, ...]


def read(path: str | os.PathLike[str], most: int) -> Content:
    """The whole content of a regular file, through any links, and who could have changed it: as the open descriptor
    says, not the path. Raises OSError: for what is no regular file, and for more than `most` bytes, too."""
    walk = _Walk(absolute(path))
    with contextlib.closing(walk):
        fd = walk.to_file(os.O_RDONLY | os.O_NONBLOCK)
        with contextlib.closing(fd):
            found = os.fstat(fd.fileno())
            require_regular(found)
            with open(fd.fileno(), "rb", closefd=False) as file:
                data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes")
    return Content(data, tuple(walk.weak))


def weaknesses(path: str | os.PathLike[str]) -> tuple[Weakness, ...]:
    """Who can change the file or folder at `path`, or what stands on the way to it. Raises OSError where it is not."""
    walk = _Walk(absolute(path))
    with contextlib.closing(walk), contextlib.closing(walk.to_file(_LOOK)):
        return tuple(walk.weak)


def weaknesses_of(path: str) -> tuple[Weakness, ...]:
    """The same of a file whose folder was looked at already: of itself alone, unless it is a link. Raises OSError."""
    found = os.stat(path, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return weaknesses(path)
    weak = weakness(path, found, os.geteuid(), _listed(path, found))
    return () if weak is None else (weak,)


def require_regular(found: os.stat_result) -> None:
    """Raises OSError for any other kind: a FIFO would hold this process for ever, a device would fill its memory."""
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, "is a directory")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")


def insist(act: Callable[[], object]) -> None:
    """Do it, and again where the system is short of something at this moment. Raises nothing: for the last chance to
    remove a file."""
    for _ in range(ATTEMPTS):
        try:
            act()
            return
        except FileNotFoundError:
            return
        except OSError:
            continue


def same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether both are the same file."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def absolute(path: str | os.PathLike[str]) -> str:
    """`path` from the root on, with its links and dots. Raises OSError where the current folder is gone."""
    text = os.fspath(path)
    return text if os.path.isabs(text) else f"{logical_folder()}/{text}"


def settle(folder: str) -> None:
    """Have relative paths start in `folder` from now on; "" for the current folder, as at first.

    A supervisor that goes to `folder` again may come to another one, where a user can change a link or a folder on the
    way. A name is walked from the root each time, and such a link is seen.
    """
    global _start
    _start = folder


def logical_folder() -> str:
    """The current folder as the user names it, with its symbolic links, if the shell told; the one that this process
    has settled on, if it has. Raises OSError if it is gone."""
    if _start:
        return _start
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    return os.getcwd()


class _Walk:
    """A way from the root to `path`, folder by folder, each held while the next one is looked up in it.

    `weak` is what another user could change on it. `close` it, or `take` the last folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.weak: list[Weakness] = []
        self._own = os.geteuid()
        self._parts = _parts(path)
        self._links = 0
        self._folders: list[tuple[str, Descriptor]] = [("", Descriptor(os.open("/", _FOLDER)))]

    def close(self) -> None:
        """Let go of every folder."""
        for _, folder in self._folders:
            folder.close()
        self._folders.clear()

    def take(self) -> Descriptor:
        """The folder that the walk has come to; it is the caller's."""
        _, folder = self._folders.pop()
        self.close()
        return folder

    def to_folder(self, strictly: bool) -> str:
        """Go to the folder of the last name, and give that name."""
        while len(self._parts) > 1 or self._parts == [".."]:
            self._step(strictly)
        if not self._parts:
            raise OSError(errno.EISDIR, "is a directory")
        return self._parts[0]

    def to_file(self, flags: int, strictly: bool = False) -> Descriptor:
        """Go to the last name, through links, and open it with `flags`."""
        while True:
            while len(self._parts) > 1 or self._parts == [".."]:
                self._step(strictly)
            name = self._parts[0] if self._parts else "."
            text, folder = self._folders[-1]
            found = os.stat(name, dir_fd=folder.fileno(), follow_symlinks=False)
            if not stat.S_ISLNK(found.st_mode):
                break
            self._follow(strictly)
        fd = Descriptor(os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fileno()))
        try:
            opened = os.fstat(fd.fileno())
            self._judge_entry(opened)
            at = f"{text}/{name}" if name != "." else text or "/"
            self._note(weakness(at, opened, self._own, _listed(fd.fileno(), opened)))
        except BaseException:
            fd.close()
            raise
        return fd

    def _step(self, strictly: bool) -> None:
        """Into the next folder of the way, or back from a symbolic link to what it says."""
        part = self._parts[0]
        text, folder = self._folders[-1]
        if part == "..":
            self._parts.pop(0)
            if len(self._folders) > 1:
                self._folders.pop()[1].close()
            return
        found = os.stat(part, dir_fd=folder.fileno(), follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            self._follow(strictly)
            return
        child = Descriptor(os.open(part, _FOLDER, dir_fd=folder.fileno()))
        self._parts.pop(0)
        self._judge_entry(os.fstat(child.fileno()))
        self._folders.append((f"{text}/{part}", child))

    def _follow(self, strictly: bool) -> None:
        part = self._parts.pop(0)
        text, folder = self._folders[-1]
        found = os.stat(part, dir_fd=folder.fileno(), follow_symlinks=False)
        weak = self._judge_entry(found)
        if weak is not None and strictly:
            raise OSError(errno.ELOOP, f"{text}/{part} is a symbolic link that another user can change")
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(part, dir_fd=folder.fileno())
        self._parts = _parts(target) + self._parts
        if os.path.isabs(target):
            while len(self._folders) > 1:
                self._folders.pop()[1].close()

    def _judge_entry(self, entry: os.stat_result) -> Weakness | None:
        """Whether another user can put something else in the place of `entry`, which the last folder holds."""
        text, folder = self._folders[-1]
        holder = os.fstat(folder.fileno())
        found = weakness_of_entry(text or "/", holder, entry, self._own, _listed(folder.fileno(), holder))
        self._note(found)
        return found

    def _note(self, found: Weakness | None) -> None:
        if found is not None and found not in self.weak:
            self.weak.append(found)


def _listed(place: int | str, found: os.stat_result) -> bool:
    """Whether a file, open or by its path, has an access list (acl(5)) that may let others write; also where it cannot
    be told."""
    if not found.st_mode & stat.S_IWGRP or not hasattr(os, "getxattr"):
        return False
    try:
        # By a path in any case: the descriptor may be one of a name alone (O_PATH).
        return bool(os.getxattr(through(place, "") if isinstance(place, int) else place, "system.posix_acl_access"))
    except OSError as exc:
        return exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
