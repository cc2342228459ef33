"""Keep the files of held unix sockets: a program that removes or replaces one would cut off all workers.

asyncio removes a live socket before it binds (CPython issue 121252) and after it has closed (issue 111246), and so do
many libraries.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from .claims import absolute
from .host import Host
from .stage import Stage

_remove, _unlink, _rename, _replace = os.remove, os.unlink, os.rename, os.replace


def install(host: Host) -> None:
    """Replace the functions of `os` that remove or replace a file, in this process, for good."""

    def removing(original: Callable[..., None]) -> Callable[..., None]:
        def remove(path: Any, *, dir_fd: int | None = None) -> None:
            if dir_fd is not None or not _is_held(host, path):
                original(path, dir_fd=dir_fd)

        return remove

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
    ):
        function.__name__ = function.__qualname__ = name
        setattr(os, name, function)


def _is_held(host: Host, path: Any) -> bool:
    if host.stage is Stage.CHILD or isinstance(path, int):
        return False
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except (OSError, ValueError, TypeError):
        return False
    return host.claims.holds_path(absolute(os.fsdecode(path)))
