"""Where log lines go: whole lines, by one system call each, never raising and never waiting for a reader that is stuck.

Knows bytes and descriptors; what a line says is not its business.
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

#: POSIX keeps pipe writes of at most PIPE_BUF bytes in one piece (4096 on Linux, pipe(7)). Several processes share one
#: pipe here: longer writes could be mixed up, and the rest of one line would stand where another begins.
LINE_BYTES = 4096
#: How long to wait for a slow reader, in seconds; one that took nothing for so long is not waited for again.
PATIENCE = 0.02


class Sink:
    """Lines for one stream. `lost` counts the records that could not be written, `reason` says why the last was not.

    A pipe or a terminal is opened once more, without blocking: the flag belongs to the open file description, which is
    shared with whoever started us, so it must not be set on the one we were given. `close` closes what was opened here.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = 0
        self.reason = ""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._patient = True
        self._torn = False
        self._owned: int | None = None
        self._fd = _descriptor(stream)
        self._socket: socket.socket | None = None
        self._may_block = False
        if self._fd is not None:
            self._open(self._fd)

    def write(self, text: str) -> bool:
        """Write one record of one or more lines; False, and counted in `lost`, if it could not be written whole."""
        try:
            if self._fd is None:
                self._write_stream(text)
            else:
                self._write_all(text)
        except (OSError, ValueError) as exc:
            # ValueError is what a closed file object raises.
            self.lost += 1
            self._patient = False
            self.reason = (getattr(exc, "strerror", None) or str(exc)).lower()
            return False
        self._patient = True
        return True

    def close(self) -> None:
        """Close what was opened here; what is written later is lost."""
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

    def _write_stream(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text + "\n")
            self._stream.flush()

    def _write_all(self, text: str) -> None:
        deadline: float | None = None
        for chunk in _chunks(text, self._encoding):
            rest = memoryview(b"\n" + chunk if self._torn else chunk)
            size = len(rest)
            while rest:
                try:
                    rest = rest[self._send(rest) :]
                except BlockingIOError:
                    now = time.monotonic()
                    deadline = now + PATIENCE if deadline is None else deadline
                    if not self._patient or now >= deadline:
                        self._torn = len(rest) < size
                        raise
                    self._wait(deadline - now)
                except OSError:
                    self._torn = len(rest) < size or self._torn
                    raise
            self._torn = False

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
        # A stream in memory (io.UnsupportedOperation), a closed one, or something that merely has write().
        return None


def _chunks(text: str, encoding: str) -> Iterator[bytes]:
    """The lines of `text`, as many of them together as one write keeps in one piece."""
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
