"""Write whole log lines, each by one system call. Never raise, and never wait long for a reader that is stuck.

It knows bytes and descriptors. See `lines.py` for what a line says.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from typing import TextIO

from ..errors import reason_of

#: PIPE_BUF: a write of up to this many bytes to a pipe is atomic (4096 on Linux, pipe(7)). Several processes share one
#: pipe here, and a longer write could be interleaved with another process's line.
LINE_BYTES = 4096
#: Seconds to wait for a slow reader. After a timeout there is no wait until a write succeeds.
WRITE_TIMEOUT = 0.02


class Sink:
    """Writes lines to one stream. `lost` counts the records that could not be written, `reason` is that of the last.

    A pipe or a terminal is opened once more, with O_NONBLOCK. That flag belongs to the open file description, which
    other processes share, so it must not be set on the inherited one. `close` closes what was opened here.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = 0
        self.reason = ""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._may_wait = True
        self._partial_line = False
        self._owned: int | None = None
        self._fd = _descriptor(stream)
        self._socket: socket.socket | None = None
        self._may_block = False
        if self._fd is not None:
            self._open(self._fd)

    def write(self, text: str) -> bool:
        """Write one record of one or more lines. If it cannot be written whole, count it in `lost`, return False."""
        try:
            if self._fd is not None:
                self._write_all(text)
            elif self._stream is not None:
                self._stream.write(text + "\n")
                self._stream.flush()
        except (OSError, ValueError) as exc:
            # A closed file object raises ValueError.
            self.lost += 1
            self._may_wait = False
            self.reason = reason_of(exc) if isinstance(exc, OSError) else str(exc).lower()
            return False
        self._may_wait = True
        return True

    def close(self) -> None:
        self._stream = self._fd = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None

    def _open(self, fd: int) -> None:
        try:
            mode = os.fstat(fd).st_mode
        except OSError:
            return
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(fd))
        elif stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            self._may_block = True
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
                self._fd = self._owned = os.open(f"/proc/self/fd/{fd}", flags)
                self._may_block = False

    def _write_all(self, text: str) -> None:
        deadline: float | None = None
        for chunk in _chunks(text, self._encoding):
            unsent = memoryview(b"\n" + chunk if self._partial_line else chunk)
            size = len(unsent)
            while unsent:
                try:
                    unsent = unsent[self._send(unsent) :]
                except BlockingIOError:
                    now = time.monotonic()
                    deadline = now + WRITE_TIMEOUT if deadline is None else deadline
                    if not self._may_wait or now >= deadline:
                        self._partial_line = len(unsent) < size
                        raise
                    self._wait(deadline - now)
                except OSError:
                    self._partial_line = len(unsent) < size or self._partial_line
                    raise
            self._partial_line = False

    def _send(self, data: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        assert self._fd is not None
        if self._may_block and not self._wait(0):
            raise BlockingIOError("the reader does not read")
        return os.write(self._fd, data)

    def _wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._socket if self._socket is not None else self._fd or 0, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        # A stream in memory (io.UnsupportedOperation), a closed one, or an object that only has write().
        return None


def _chunks(text: str, encoding: str) -> Iterator[bytes]:
    """Yield the lines of `text` in chunks that are as large as an atomic write allows."""
    chunk = b""
    for line in text.split("\n"):
        data = line.encode(encoding, "backslashreplace")
        if len(data) >= LINE_BYTES:
            data = data[: LINE_BYTES - 4].decode(encoding, "ignore").encode(encoding, "backslashreplace") + b"..."
        data += b"\n"
        if chunk and len(chunk) + len(data) > LINE_BYTES:
            yield chunk
            chunk = b""
        chunk += data
    yield chunk
