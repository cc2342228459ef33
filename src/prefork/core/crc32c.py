"""The checksum CRC32C (Castagnoli), which the standard library does not have; nothing here knows a protocol."""

from __future__ import annotations

#: The polynomial with its bits reversed (RFC 3720, B.4; RFC 4960, appendix B).
_POLYNOMIAL = 0x82F63B78


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(_shifted(byte) for byte in range(256))


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC32C of `data`, a number of 32 bits."""
    table = _TABLE
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
