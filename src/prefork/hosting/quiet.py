"""Tell whether a connection is between a reply and the next request, by what the kernel knows of it (tcp(7)).

A guess for protocols of requests and replies; nothing else is known of a program's protocol.
"""

from __future__ import annotations

import errno
import os
import socket

from ..core.tcp_info import TCPInfo
from ..system.tcp_info import read_activity, read_tcp_info

#: What the answer is made of. Kernels before 4.6 have no counts of segments.
_FIELDS = (
    TCPInfo.UNACKED,
    TCPInfo.LAST_DATA_SENT,
    TCPInfo.LAST_DATA_RECEIVED,
    TCPInfo.DATA_SEGMENTS_IN,
    TCPInfo.DATA_SEGMENTS_OUT,
)
_ESTABLISHED = 1
#: Milliseconds without a byte in either direction.
_SILENCE = 100


def is_quiet(fd: int) -> bool:
    """Return whether a connection's last bytes went to the peer, some time ago, and all have arrived."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = read_tcp_info(sock, TCPInfo.DATA_SEGMENTS_OUT)
            if _has_input(sock):
                return False
    except OSError as exc:
        # It is closed; or it is no TCP connection, of which the kernel tells nothing, so that it may be in use.
        return exc.errno not in (errno.EOPNOTSUPP, errno.ENOPROTOOPT)
    return TCPInfo.STATE.of(info) != _ESTABLISHED or _is_answered(info)


def is_new(fd: int) -> bool:
    """Return whether the program has not yet read what a connection was made for."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            activity = read_activity(sock)
            return activity is not None and (not activity.bytes_received or _has_input(sock))
    except OSError:
        return False


def _is_answered(info: bytes) -> bool:
    values = [value for field in _FIELDS if (value := field.of(info)) is not None]
    if len(values) < len(_FIELDS):
        return False
    unacked, sent, received, segments_in, segments_out = values
    if unacked or min(sent, received) < _SILENCE:
        return False
    if sent != received:
        return bool(sent < received)
    # Both within one tick of the kernel's timer, which is up to 10 ms: a request that was answered at once, or one that
    # came at once, such as with the connection itself, and is being worked on.
    return bool(segments_out >= segments_in)


def _has_input(sock: socket.socket) -> bool:
    """Return whether bytes, or the end, wait to be read: the program has something to do."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True
