"""What the kernel knows about the peer of a TCP connection: whether it has sent a byte, and how long ago the last one.

Only the question and its answer; what follows from it is for `net/protocol_timeouts.py` to decide.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

#: tcp(7), and the struct `tcp_info` of linux/tcp.h, to which the kernel only ever appends.
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_LAST_DATA_RECV = struct.Struct("=I"), 52
_BYTES_RECEIVED = struct.Struct("=Q"), 128
_SEGS_IN = struct.Struct("=I"), 140
_SIZE = 144


@dataclass(frozen=True, slots=True)
class PeerActivity:
    """What a peer has sent until now."""

    bytes_received: int
    """Everything that has arrived in order, TLS records and the peer's FIN included."""
    silent_for: float
    """Seconds since the last of it; since the connection was established if nothing has arrived."""


def counts_bytes(sock: socket.socket) -> bool:
    """Return whether the kernel counts what the peer of `sock` sends: on TCP, but not for all paths of MPTCP."""
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto in (0, socket.IPPROTO_TCP)


def read_activity(sock: socket.socket) -> PeerActivity | None:
    """Return what the peer of a TCP connection has sent; one system call.

    None if the kernel does not say: `sock` is closed or no TCP socket, or the kernel fills in only a part of tcp_info.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:
        return None
    # A kernel that has counted no segment of an established connection counts none at all: every peer would look mute.
    if len(info) < _SIZE or not _field(info, _SEGS_IN):
        return None
    return PeerActivity(_field(info, _BYTES_RECEIVED), _field(info, _LAST_DATA_RECV) / 1000)


def _field(info: bytes, field: tuple[struct.Struct, int]) -> int:
    layout, offset = field
    value: int = layout.unpack_from(info, offset)[0]
    return value
