"""The checksum CRC32C (Castagnoli), which the standard library does not have; nothing here knows a protocol."""

from __future__ import annotations

import struct

#: The polynomial with its bits reversed (RFC 3720, B.4; RFC 4960, appendix B).
_POLYNOMIAL = 0x82F63B78


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


def _behind(table: list[int]) -> list[int]:
    """Return the table of a byte that stands one byte further from the end."""
    return [value >> 8 ^ _BYTE[value & 0xFF] for value in table]


_BYTE = [_shifted(byte) for byte in range(256)]
_SECOND = _behind(_BYTE)
_THIRD = _behind(_SECOND)
_FOURTH = _behind(_THIRD)


def crc32c(data: bytes) -> int:
    """Return the CRC32C of `data`, a number of 32 bits: four bytes at a time, which is twice as fast as one."""
    value = 0xFFFFFFFF
    words, rest = divmod(len(data), 4)
    first, second, third, fourth = _FOURTH, _THIRD, _SECOND, _BYTE
    for word in struct.unpack_from(f"<{words}I", data):
        value ^= word
        value = first[value & 0xFF] ^ second[value >> 8 & 0xFF] ^ third[value >> 16 & 0xFF] ^ fourth[value >> 24]
    for byte in data[len(data) - rest :]:
        value = value >> 8 ^ fourth[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
