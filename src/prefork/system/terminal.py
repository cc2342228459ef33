"""Giving up the terminal: a program of another user that has root's terminal can type into root's shell (TIOCSTI,
ioctl_tty(2)), and read what root types there. Who gives it up, and when, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios


def give_up_terminal() -> None:
    """Keep only the right to write to it. Raises nothing: most servers have no terminal."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(fd):
                _reopen(fd)
    # The controlling terminal may be another one than those. Without it TIOCSTI is refused (EPERM).
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _reopen(fd: int) -> None:
    """Standard input has nothing to read; the others cannot be read from, as a shell gives all three the same
    description."""
    path, flags = (os.devnull, os.O_RDONLY) if fd == 0 else (f"/proc/self/fd/{fd}", os.O_WRONLY)
    new = os.open(path, flags | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        os.dup2(new, fd)
    finally:
        os.close(new)
