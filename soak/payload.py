"""The frames that are echoed: what a client sends, and what an honest answer to it looks like.

Pure: bytes and numbers. Imported by the services in the workers as well, so it imports next to nothing.
"""

from __future__ import annotations

import random
import struct
import zlib

#: Length of the body, sequence number, CRC32 of both and the body, and the number of what answers (0 in a request):
#: the PID of the worker, or what else fits into 64 bits.
HEAD = struct.Struct("!IQIQ")
#: A longer body is no body of ours.
LONGEST = 1 << 20

#: The longest that `request` makes.
LARGEST = 1 << 18

# Bodies are slices of this, at places that depend on the sequence number: two of them hardly ever agree.
_PLACES = (1 << 16) - 15
_BLOCK = random.Random(1).randbytes(_PLACES + LARGEST)


class Wrong(Exception):
    """An answer is not what was asked for; the text says in what."""


def checksum(sequence: int, body: bytes | memoryview) -> int:
    """Over the number as well, so that an answer to another request cannot pass."""
    return zlib.crc32(body, sequence & 0xFFFFFFFF)


def request(sequence: int, size: int) -> bytes:
    """A frame with a body of `size` bytes, at most `LARGEST`."""
    place = sequence * 7919 % _PLACES
    body = _BLOCK[place : place + size]
    return HEAD.pack(size, sequence, checksum(sequence, body), 0) + body


def answer(head: bytes, body: bytes, number: int) -> bytes:
    """The answer of `number` to a request. Raises Wrong if the request was damaged on its way."""
    length, sequence, crc, _ = HEAD.unpack(head)
    if length != len(body) or crc != checksum(sequence, body):
        raise Wrong(f"request {sequence} came damaged")
    return HEAD.pack(length, sequence, crc, number) + body


def missing(received: bytes | bytearray) -> int:
    """How many bytes are missing until the frame that `received` begins with is whole; negative: there are more.

    Raises Wrong for the head of a frame that is none.
    """
    if len(received) < HEAD.size:
        return HEAD.size - len(received)
    length = HEAD.unpack_from(received)[0]
    if length > LONGEST:
        raise Wrong(f"a body of {length} bytes was announced")
    return HEAD.size + int(length) - len(received)


def verify(received: bytes | bytearray, sequence: int, size: int) -> int:
    """Return the number of what answered. Raises Wrong unless it answers `request(sequence, size)`."""
    length, asked, crc, number = HEAD.unpack_from(received)
    if asked != sequence:
        raise Wrong(f"answer to request {asked} instead of {sequence}")
    if length != size or len(received) != HEAD.size + size:
        raise Wrong(f"{len(received) - HEAD.size} bytes (announced: {length}) instead of {size}")
    if crc != checksum(sequence, memoryview(received)[HEAD.size :]):
        raise Wrong(f"the checksum of answer {sequence} is wrong")
    return int(number)
