"""Give up the terminal, so that a program of another user cannot use root's.

With root's terminal it could type into root's shell (TIOCSTI, ioctl_tty(2)) and read what root types there. The caller
decides when to give it up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios


def give_up_terminal() -> None:
    """Keep only the right to write to the terminal. Raises nothing, because most servers have no terminal."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(fd):
                _reopen(fd)
    # The controlling terminal may be a fourth one. Without a controlling terminal TIOCSTI is refused (EPERM).
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _reopen(fd: int) -> None:
    """Replace standard input by /dev/null; reopen the others write-only, as a shell gives all three one description."""
    path, flags = (os.devnull, os.O_RDONLY) if fd == 0 else (f"/proc/self/fd/{fd}", os.O_WRONLY)
    new = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        os.dup2(new, fd)
    finally:
        os.close(new)
