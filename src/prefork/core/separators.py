"""The separators of `readuntil`: what may be one, and where the first of several is in a buffer.

How far is searched, and what follows, is decided by the stream.
"""

from __future__ import annotations

from .buffer import ReadBuffer

_Bytes = bytes | bytearray | memoryview
Separator = bytes | tuple[bytes, ...]

#: The messages of asyncio's streams.
NOT_FOUND = "Separator is not found, and chunk exceed the limit"
FOUND_LATE = "Separator is found, but chunk is longer than limit"
_EMPTY = "Separator should be at least one-byte string"
_NONE = "Separator should contain at least one element"


def checked_separator(separator: _Bytes | tuple[_Bytes, ...]) -> Separator:
    """Return `separator` as bytes. Raises ValueError for an empty one, and for an empty tuple."""
    if not isinstance(separator, tuple):
        if not separator:
            raise ValueError(_EMPTY)
        return bytes(separator)
    if not separator:
        raise ValueError(_NONE)
    if not all(separator):
        raise ValueError(_EMPTY)
    return tuple(bytes(each) for each in separator)


def find_separator(buffer: ReadBuffer, separator: Separator) -> tuple[int, int]:
    """Return where the first separator begins and ends.

    If there is none yet: -1, and the number of bytes that cannot be part of one.
    """
    if isinstance(separator, bytes):
        at = buffer.find(separator)
        longest = len(separator)
        end = at + longest
    else:
        at, end = buffer.find_any(separator)
        longest = max(map(len, separator))
    return (at, end) if at >= 0 else (-1, buffer.size + 1 - longest)
