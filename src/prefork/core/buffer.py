"""The bytes of one connection that wait: received but not read, and written but not sent.

Pure data structures. What may wait, and for how long, is decided by their owner; sockets never appear.
"""

from __future__ import annotations

from collections import deque

#: A chunk of at least so many bytes is kept as it is; a smaller one is copied next to its neighbour, because the
#: bookkeeping of a million two-byte chunks would weigh more than they do.
KEEP_WHOLE = 16 * 1024
#: A run of small chunks is closed when it has grown to this, so that one send takes it whole.
RUN_LIMIT = 64 * 1024


class ReadBuffer:
    """Received bytes in order, with a search that never looks at a byte twice.

    Held as the one `bytes` object that the socket gave as long as that suffices, since slicing it costs one copy and
    nothing else; as a `bytearray` from the moment that something must be joined to a rest. Adding, searching and taking
    are linear in the bytes that pass through, whatever the size of the pieces.
    """

    __slots__ = ("_data", "_searched", "_separator", "_start", "size")

    def __init__(self) -> None:
        self._data: bytes | bytearray = b""
        self._start = 0
        self._searched = 0
        self._separator: bytes | tuple[bytes, ...] = b""
        self.size = 0
        """How many bytes are there. To be read, not set."""

    def feed(self, chunk: bytes) -> None:
        """Add `chunk` at the end."""
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
        """Remove and return the first `size` bytes, or all there are."""
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
        """Remove and return the first line, newline included; b"" where none is complete, or it has more than `limit`
        bytes before its newline. What `find` and `take` do, in one call: half the time of a pipelined request."""
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
        """How many bytes come before the first `separator`; -1 where there is none yet.

        A search that failed goes on where it stopped when more has arrived: without that, a peer that sends a long
        line byte by byte makes the server do quadratic work.
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
        """Where the separator that ends first begins and ends; (-1, -1) if there is none yet. As linear as `find`."""
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
        """Forget everything."""
        self._data = b""
        self._start = self._searched = self.size = 0


class WriteBacklog:
    """Bytes that the kernel did not take yet, in order; `size` says how many, `held` what memory they keep: of a piece
    that is sent in part all of it."""

    __slots__ = ("_chunks", "_run", "held", "size")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._run: bytearray | None = None
        self.size = 0
        self.held = 0

    def append(self, data: bytes | memoryview) -> None:
        """Add `data` at the end; `data` must not change afterwards."""
        self.size += len(data)
        if len(data) >= KEEP_WHOLE:
            self._close_run()
            view = memoryview(data)
            self._chunks.append(view)
            self.held += _whole(view)
            return
        if self._run is None:
            self._run = bytearray()
        self._run += data
        self.held += len(data)
        if len(self._run) >= RUN_LIMIT:
            self._close_run()

    def _close_run(self) -> None:
        if self._run:
            self._chunks.append(memoryview(self._run))
        self._run = None

    def head(self) -> memoryview:
        """The bytes to send next: not empty unless the backlog is."""
        if not self._chunks:
            self._close_run()
        return self._chunks[0] if self._chunks else memoryview(b"")

    def advance(self, sent: int) -> None:
        """The first `sent` bytes of `head()` are on their way."""
        self.size -= sent
        head = self._chunks[0]
        if sent == len(head):
            self._chunks.popleft()
            self.held -= _whole(head)
        else:
            self._chunks[0] = head[sent:]


def _whole(view: memoryview) -> int:
    """The size of what a view is of."""
    whole = view.obj
    return len(whole) if isinstance(whole, bytes | bytearray) else len(view)
