"""What a supervisor hands out to workers that run: fields of bytes, in one file of bounded size.

Pure: fields go in, the content of the file comes out, and back. What the fields mean is in `system/tls_handout.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_MAGIC = b"prefork handout 1\n"
_LENGTH = struct.Struct("!I")
#: Fields of one file, and bytes of it.
MAX_FIELDS = 20_000
MAX_BYTES = 256 * 1024 * 1024


def encode_fields(fields: Sequence[bytes | bytearray]) -> bytearray:
    """Return the content of a file with these fields, which the caller may overwrite. Raises ValueError."""
    size = len(_MAGIC) + sum(_LENGTH.size + len(each) for each in fields)
    if len(fields) > MAX_FIELDS or size > MAX_BYTES:
        raise ValueError(f"{len(fields)} fields of {size} bytes are too much for a handout")
    # Of its final length at once, because a copy would stay behind where it grows.
    content = bytearray(size)
    content[: len(_MAGIC)] = _MAGIC
    position = len(_MAGIC)
    for each in fields:
        _LENGTH.pack_into(content, position, len(each))
        position += _LENGTH.size
        content[position : position + len(each)] = each
        position += len(each)
    return content


def decode_fields(content: bytes | bytearray) -> list[memoryview]:
    """Return the fields in the content of a file, as views of it. Raises ValueError."""
    if len(content) > MAX_BYTES or not content.startswith(_MAGIC):
        raise ValueError("not a handout of this version")
    fields: list[memoryview] = []
    view, position = memoryview(content), len(_MAGIC)
    while position < len(content):
        start = position + _LENGTH.size
        if start > len(content) or len(fields) == MAX_FIELDS:
            raise ValueError("a handout that is cut, or has too many fields")
        (length,) = _LENGTH.unpack_from(content, position)
        position = start + length
        if position > len(content):
            raise ValueError("a field of a handout is cut")
        fields.append(view[start:position])
    return fields
