"""The buffers of one connection: bytes received but not read, and bytes written but not sent.

Pure data structures. How much may wait, and for how long, is their owner's decision; sockets do not appear.
"""

from __future__ import annotations

from collections import deque

#: A chunk of at least this size is kept as it is. A smaller one is copied next to its neighbour, because the
#: bookkeeping of a million two-byte chunks would outweigh them.
KEEP_WHOLE = 16 * 1024
#: A run of small chunks is closed at this size, so that one send takes it whole.
RUN_LIMIT = 64 * 1024


class ReadBuffer:
    """Received bytes in order, with a search that looks at each byte once.

    Kept as the one `bytes` object from the socket as long as possible, because a slice of it costs one copy. It becomes
    a `bytearray` when more bytes must be joined to a remainder. Adding, searching and taking are linear in the bytes
    that pass through, whatever the size of the pieces.
    """

    __slots__ = ("_data", "_searched", "_separator", "_start", "size")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._start = 0
        self._searched = 0
        self._separator: bytes | tuple[bytes, ...] = b""
        self.size = 0
        """Number of buffered bytes. Read-only outside this class."""

    def feed(self, chunk: bytes) -> None:
        if not self.size:
            self._data = chunk
            self.size = len(chunk)
            self._start = self._searched = 0
            return
        self.size += len(chunk)
        data = self._data
        if type(data) is bytearray:
            if self._start:
                del data[: self._start]
        else:
            self._data = data = bytearray(memoryview(data)[self._start :])
        self._start = 0
        data += chunk

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes, or all if there are fewer."""
        data = self._data
        start = self._start
        self._searched = 0
        if size >= self.size:
            self._data = b""
            self._start = self.size = 0
            if start:
                data = data[start:]
        else:
            self._start = start + size
            self.size -= size
            data = data[start : start + size]
        return data if type(data) is bytes else bytes(data)

    def line(self, limit: int) -> bytes:
        """Remove and return the first line, newline included. Return b"" if no line is complete, or if the first one
        has more than `limit` bytes before its newline.

        Does what `find` and `take` do, in one call: saves 50 % of a pipelined request.
        """
        data = self._data
        start = self._start
        if self._separator != b"\n":
            self._separator = b"\n"
            self._searched = 0
        at = data.find(b"\n", start + self._searched)
        if at < 0:
            self._searched = self.size
            return b""
        if at - start > limit:
            return b""
        self._searched = 0
        end = at + 1
        if end == len(data):
            self._data = b""
            self._start = self.size = 0
        else:
            self._start = end
            self.size -= end - start
        line = data[start:end]
        return line if type(line) is bytes else bytes(line)

    def find(self, separator: bytes) -> int:
        """Return the number of bytes before the first `separator`, or -1 if it is not there.

        A failed search continues where it stopped when more bytes have arrived. Otherwise a peer that sends a long line
        byte by byte would cause quadratic work.
        """
        if separator != self._separator:
            self._separator = separator
            self._searched = 0
        data = self._data
        start = self._start
        at = data.find(separator, start + self._searched)
        if at < 0:
            self._searched = max(0, len(data) - start - len(separator) + 1)
            return -1
        return at - start

    def find_any(self, separators: tuple[bytes, ...]) -> tuple[int, int]:
        """Return where the separator that ends first begins and ends, or (-1, -1). As linear as `find`."""
        if separators != self._separator:
            self._separator = separators
            self._searched = 0
        data, start = self._data, self._start
        first = end = -1
        for separator in separators:
            at = data.find(separator, start + self._searched)
            if at >= 0 and (end < 0 or at + len(separator) < end):
                first, end = at, at + len(separator)
        if first < 0:
            self._searched = max(0, len(data) - start - max(map(len, separators)) + 1)
            return -1, -1
        return first - start, end - start

    def clear(self) -> None:
        self._data = b""
        self._start = self._searched = self.size = 0


class WriteBacklog:
    """Bytes that the kernel has not taken yet, in order."""

    __slots__ = ("_chunks", "_run", "memory", "size")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._run: bytearray | None = None
        self.size = 0
        """Unsent bytes."""
        self.memory = 0
        """Bytes of memory that they keep allocated: a chunk that is sent in part counts whole."""

    def append(self, data: bytes | memoryview) -> None:
        """Add `data` at the end; it must not change afterwards."""
        self.size += len(data)
        if len(data) >= KEEP_WHOLE:
            self._close_run()
            view = memoryview(data)
            self._chunks.append(view)
            self.memory += _allocated(view)
            return
        if self._run is None:
            self._run = bytearray()
        self._run += data
        self.memory += len(data)
        if len(self._run) >= RUN_LIMIT:
            self._close_run()

    def _close_run(self) -> None:
        if self._run:
            self._chunks.append(memoryview(self._run))
        self._run = None

    def head(self) -> memoryview:
        """Return the bytes to send next; empty only if the backlog is."""
        if not self._chunks:
            self._close_run()
        return self._chunks[0] if self._chunks else memoryview(b"")

    def advance(self, sent: int) -> None:
        """Remove the first `sent` bytes of `head()`."""
        self.size -= sent
        head = self._chunks[0]
        if sent == len(head):
            self._chunks.popleft()
            self.memory -= _allocated(head)
        else:
            self._chunks[0] = head[sent:]


def _allocated(view: memoryview) -> int:
    """Return the size of the object that `view` keeps alive."""
    whole = view.obj
    return len(whole) if isinstance(whole, bytes | bytearray) else len(view)
