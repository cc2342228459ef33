"""Write whole log lines, each by one system call. Never raise, and never wait long for a reader that is stuck.

It knows bytes and descriptors. See `lines.py` for what a line says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TextIO

from ..errors import reason_of
from .output import ATOMIC_BYTES, Output

#: Maximum size of a line with its newline.
LINE_BYTES = ATOMIC_BYTES
#: Seconds to wait for a slow reader. After a timeout there is no wait until a write succeeds.
WRITE_TIMEOUT = 0.02


class Sink:
    """Writes lines to one stream. `lost` counts the records that could not be written, `reason` is that of the last.

    `close` closes what was opened here, and not the stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.lost = 0
        self.reason = ""
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._may_wait = True
        self._partial_line = False
        fd = _descriptor(stream)
        self._output = None if fd is None else Output(fd)

    def write(self, text: str) -> bool:
        """Write one record of one or more lines. If it cannot be written whole, count it in `lost`, return False."""
        try:
            if self._output is not None:
                self._write_all(text, self._output)
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
        self._stream = None
        output, self._output = self._output, None
        if output is not None:
            output.close()

    def _write_all(self, text: str, output: Output) -> None:
        deadline: float | None = None
        for chunk in _chunks(text, self._encoding):
            unsent = memoryview(b"\n" + chunk if self._partial_line else chunk)
            size = len(unsent)
            while unsent:
                try:
                    unsent = unsent[output.send(unsent) :]
                except BlockingIOError:
                    now = time.monotonic()
                    deadline = now + WRITE_TIMEOUT if deadline is None else deadline
                    if not self._may_wait or now >= deadline:
                        self._partial_line = len(unsent) < size
                        raise
                    output.wait(deadline - now)
                except OSError:
                    self._partial_line = len(unsent) < size or self._partial_line
                    raise
            self._partial_line = False


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
