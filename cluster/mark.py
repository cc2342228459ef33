"""The number that an answer carries: which host has answered, and which peer it saw.

Pure. Imported by the service in the workers as well, so it imports next to nothing.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple


class Mark(NamedTuple):
    """A host's number (1 to 255), and the IPv4 address and port of the peer that its handler was told."""

    host: int
    address: str
    port: int


def pack(mark: Mark) -> int:
    """Return the mark as a number of 56 bits. Raises ValueError if it has no IPv4 address."""
    return mark.host << 48 | int(ipaddress.IPv4Address(mark.address)) << 16 | mark.port


def unpack(number: int) -> Mark:
    """Return the mark that `pack` made a number of."""
    return Mark(number >> 48, str(ipaddress.IPv4Address(number >> 16 & 0xFFFFFFFF)), number & 0xFFFF)
