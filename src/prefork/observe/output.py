"""Write bytes to a descriptor that others share, without waiting for its reader. It knows nothing of lines."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat

#: PIPE_BUF: a write of up to this many bytes to a pipe is atomic (4096 on Linux, pipe(7)). Several processes share one
#: pipe here, and a longer write could be interleaved with another process's line.
ATOMIC_BYTES = 4096


class Output:
    """The descriptor `fd`, which it borrows; `close` closes what was opened here.

    A pipe or a terminal is opened once more, with O_NONBLOCK. That flag belongs to the open file description, which
    other processes share, so it must not be set on the inherited one.
    """

    def __init__(self, fd: int) -> None:
        self.is_file = False
        """A regular file: a write of any size is in one piece, and only the disk is waited for."""
        self._fd = fd
        self._owned: int | None = None
        self._socket: socket.socket | None = None
        self._may_block = False
        with contextlib.suppress(OSError):
            self._open(os.fstat(fd).st_mode)

    def _open(self, mode: int) -> None:
        self.is_file = stat.S_ISREG(mode)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._fd))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            self._may_block = True
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
            self._fd = self._owned = os.open(f"/proc/self/fd/{self._fd}", flags)
            self._may_block = False

    def send(self, data: memoryview | bytes | bytearray) -> int:
        """Return how many bytes were written. Raises BlockingIOError if the reader does not read, or OSError."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._may_block and not self.wait(0):
            raise BlockingIOError("the reader does not read")
        return os.write(self._fd, data)

    def wait(self, seconds: float) -> bool:
        """Wait until something can be written. Return whether it can."""
        poll = select.poll()
        poll.register(self._fd if self._socket is None else self._socket, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None
