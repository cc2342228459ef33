"""What the kernel knows about the peer of a TCP connection: whether it has sent a byte, and how long ago the last one.

Only the question and its answer; what follows from it is for `net/protocol_timeouts.py` to decide.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

#: tcp(7), and the struct `tcp_info` of linux/tcp.h, to which the kernel only ever appends.
_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_UNACKED = struct.Struct("=I"), 24
_SACKED = struct.Struct("=I"), 28
_LAST_DATA_RECV = struct.Struct("=I"), 52
_BYTES_ACKED = struct.Struct("=Q"), 120
_BYTES_RECEIVED = struct.Struct("=Q"), 128
_SEGS_IN = struct.Struct("=I"), 140
_SIZE = 144
#: States, netinet/tcp.h: of a connection that has no other end, and of a socket that listens.
_TCP_CLOSE = 7
_TCP_LISTEN = 10


@dataclass(frozen=True, slots=True)
class PeerActivity:
    """What a peer has sent until now."""

    bytes_received: int
    """Everything that has arrived in order, TLS records and the peer's FIN included."""
    silent_for: float
    """Seconds since the last of it; since the connection was established if nothing has arrived."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a connection has carried until now, in bytes of the stream, TLS records included."""

    received: int
    sent: int
    """Everything that the peer has acknowledged."""
    is_reset: bool
    """The peer has reset it, or the kernel has given it up."""


def read_totals(sock: socket.socket) -> Totals | None:
    """Return what a TCP connection has carried; one system call. None if the kernel does not say."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:
        return None
    if len(info) < _SIZE:
        return None
    return Totals(_field(info, _BYTES_RECEIVED), _field(info, _BYTES_ACKED), info[0] == _TCP_CLOSE)


def accept_queue(sock: socket.socket) -> tuple[int, int] | None:
    """Return the length and the limit of the accept queue of a TCP socket that listens; None if it does not."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:
        return None
    if len(info) < _SIZE or info[0] != _TCP_LISTEN:
        return None
    # Of a listening socket the kernel puts the queue into these two fields (tcp_get_info).
    return _field(info, _UNACKED), _field(info, _SACKED)


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
