"""Ask the kernel about one TCP socket: what its peer has sent and how long ago, and what waits in an accept queue.

Only the question and its answer: `core/tcp_info.py` knows the layout, `net/protocol_timeouts.py` what follows.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from ..core.tcp_info import TCPInfo

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
#: States, netinet/tcp.h: of a connection that has no other end, and of a socket that listens.
_TCP_CLOSE = 7
#: States in which the peer's FIN has arrived, which the kernel counts as a byte.
_PEER_CLOSED = (6, 8, 9, 11)
_TCP_LISTEN = 10
# Looked up for each accept; an attribute of an enum class costs twice as much as a global.
_UNACKED = TCPInfo.UNACKED


@dataclass(frozen=True, slots=True)
class PeerActivity:
    """What a peer has sent until now."""

    bytes_received: int
    """Everything that has arrived in order, TLS records and the peer's FIN included."""
    silent_for: float
    """Seconds since the last of it; since the connection was established if nothing has arrived."""


def read_tcp_info(sock: socket.socket, up_to: TCPInfo) -> bytes:
    """Return struct tcp_info up to the field `up_to`, or less if the kernel knows less. Raises OSError."""
    return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, up_to.end)


@dataclass(frozen=True, slots=True)
class Totals:
    """What a connection has carried until now, in bytes of the stream, TLS records included."""

    received: int
    sent: int
    """Everything that the kernel was given."""
    is_reset: bool
    """The peer has reset it, or the kernel has given it up."""


def read_totals(sock: socket.socket) -> Totals | None:
    """Return what a TCP connection has carried; one system call. None if the kernel does not say."""
    try:
        info = read_tcp_info(sock, TCPInfo.BYTES_SENT_AGAIN)
    except OSError:
        return None
    received, sent = TCPInfo.BYTES_RECEIVED.of(info), TCPInfo.BYTES_ACKNOWLEDGED.of(info)
    if received is None or sent is None:
        return None
    given, again = TCPInfo.BYTES_SENT.of(info), TCPInfo.BYTES_SENT_AGAIN.of(info)
    if given is not None and again is not None:
        # The answer before a close is seldom acknowledged when the socket closes. An old kernel does not know more.
        sent = given - again + (TCPInfo.NOT_SENT.of(info) or 0)
    state = TCPInfo.STATE.of(info)
    return Totals(received - (state in _PEER_CLOSED), sent, state == _TCP_CLOSE)


def tcp_accept_queue(sock: socket.socket) -> tuple[int, int] | None:
    """Return the length and the limit of the accept queue of a TCP socket that listens; None if it does not."""
    try:
        info = read_tcp_info(sock, TCPInfo.SACKED)
    except OSError:
        return None
    waiting, limit = TCPInfo.UNACKED.of(info), TCPInfo.SACKED.of(info)
    if waiting is None or limit is None or TCPInfo.STATE.of(info) != _TCP_LISTEN:
        return None
    return waiting, limit


def counts_bytes(sock: socket.socket) -> bool:
    """Return whether the kernel counts what the peer of `sock` sends: on TCP, but not for all paths of MPTCP."""
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.proto in (0, socket.IPPROTO_TCP)


def read_activity(sock: socket.socket) -> PeerActivity | None:
    """Return what the peer of a TCP connection has sent; one system call.

    None if the kernel does not say: `sock` is closed or no TCP socket, or the kernel fills in only a part of tcp_info.
    """
    try:
        info = read_tcp_info(sock, TCPInfo.SEGMENTS_IN)
    except OSError:
        return None
    received, silent = TCPInfo.BYTES_RECEIVED.of(info), TCPInfo.LAST_DATA_RECEIVED.of(info)
    # A kernel that has counted no segment of an established connection counts none at all: every peer would look mute.
    if received is None or silent is None or not TCPInfo.SEGMENTS_IN.of(info):
        return None
    return PeerActivity(received, silent / 1000)


def queue_length(listener: socket.socket) -> int:
    """Return the number of connections in the accept queue; 0 for a unix socket, which does not tell."""
    try:
        return _UNACKED.of(read_tcp_info(listener, _UNACKED)) or 0
    except OSError:
        return 0
