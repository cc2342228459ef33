"""The text of packed IP addresses, as getpeername(2) has it; no ports, and nothing that asks the system."""

from __future__ import annotations

import struct

#: What an IPv4 address begins with in one of IPv6 (RFC 4291, 2.5.5.2).
MAPPED = bytes(10) + b"\xff\xff"
_GROUPS = struct.Struct("!8H")
#: Runs of zero groups, the longest first: it becomes `::`, and of two the first (RFC 5952, 4.2).
_ZEROS = [":" + "0:" * length for length in range(8, 1, -1)]


def ipv4_text(packed: bytes) -> str:
    """Return the text of an IPv4 address of four bytes."""
    first, second, third, fourth = packed
    return f"{first}.{second}.{third}.{fourth}"


def ipv6_text(packed: bytes) -> str:
    """Return the text of an IPv6 address of 16 bytes as getpeername(2) has it, an IPv4 address in it with dots.

    Not by inet_ntop(3), because what is claimed must not depend on the system, and not by `ipaddress`, which takes four
    times as long. Without the dots the claimed address and the real one of a peer would count as two (`core/peers.py`).
    """
    if packed.startswith(MAPPED):
        return "::ffff:" + ipv4_text(packed[len(MAPPED) :])
    text = ":{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:".format(*_GROUPS.unpack(packed))
    for zeros in _ZEROS:
        before, found, after = text.partition(zeros)
        if found:
            return f"{before[1:]}::{after[:-1]}"
    return text[1:-1]
