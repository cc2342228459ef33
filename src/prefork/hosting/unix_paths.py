"""Keep the files of held unix sockets: a program that removes or replaces one would cut off all workers.

asyncio removes a live socket before it binds (CPython issue 121252) and after it has closed (issue 111246), and so do
many libraries.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from .claims import absolute
from .host import Host
from .stage import Stage

_remove, _unlink, _rename, _replace, _rmdir = os.remove, os.unlink, os.rename, os.replace, os.rmdir


def install(host: Host) -> None:
    """Replace the functions of `os` that remove or replace a file, in this process, for good."""

    def removing(original: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            if not _is_held(host, path, dir_fd):
                original(path, dir_fd=dir_fd)

        return remove

    def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
        try:
            _rmdir(path, dir_fd=dir_fd)
        except OSError as exc:
            # What shutil.rmtree has left of it.
            if exc.errno != errno.ENOTEMPTY or not _has_held(host, path, dir_fd):
                raise

    def moving(original: Callable[..., None]) -> Callable[..., None]:
        def move(src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            if src_dir_fd is None and dst_dir_fd is None and (_is_held(host, dst) or _is_held(host, src)):
                # What was to take its place is of no use any more.
                if not _is_held(host, src):
                    _unlink(src)
                return
            original(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        return move

    for name, function in (
        ("remove", removing(_remove)),
        ("unlink", removing(_unlink)),
        ("rename", moving(_rename)),
        ("replace", moving(_replace)),
        ("rmdir", rmdir),
    ):
        function.__name__ = function.__qualname__ = name
        setattr(os, name, function)
        # shutil.rmtree, where it is imported later, looks there.
        os.supports_dir_fd.add(function)


def _is_held(host: Host, path: Any, dir_fd: int | None = None) -> bool:
    if host.stage is Stage.CHILD or isinstance(path, int):
        return False
    try:
        if not stat.S_ISSOCK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return False
        return host.claims.holds_path(absolute(_joined(path, dir_fd)))
    except (OSError, ValueError, TypeError):
        return False


def _has_held(host: Host, path: Any, dir_fd: int | None) -> bool:
    """Return whether a directory has the file of a held socket."""
    try:
        folder = _joined(path, dir_fd)
        return any(_is_held(host, os.path.join(folder, name)) for name in os.listdir(folder))
    except (OSError, ValueError, TypeError):
        return False


def _joined(path: Any, dir_fd: int | None) -> str:
    folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.join(folder, os.fsdecode(path))
