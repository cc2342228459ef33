"""Reading files that somebody else names: regular ones alone, to a bound, and without waiting.

A FIFO in the place of a certificate would hold the supervisor for ever, a device would fill its memory.
"""

from __future__ import annotations

import errno
import os
import stat


def read(path: str | os.PathLike[str], most: int) -> bytes:
    """The whole content. Raises OSError: for what is no regular file, and for one of more than `most` bytes, too."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        require_regular(fd)
        with open(fd, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(fd)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most} bytes")
    return content


def require_regular(fd: int) -> None:
    """Raises OSError for any other kind."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")
