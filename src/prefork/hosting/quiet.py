"""Tell whether a connection is between a reply and the next request, by what the kernel knows of it (tcp(7)).

A guess for protocols of requests and replies; nothing else is known of a program's protocol.
"""

from __future__ import annotations

import os
import socket
import struct

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
#: struct tcp_info (linux/tcp.h): state at 0, unacked at 24, last_data_sent at 44, last_data_recv at 52.
_SIZE = 64
_UNACKED, _SENT, _RECEIVED = 24, 44, 52
_ESTABLISHED = 1
#: Milliseconds without a byte in either direction.
_SILENCE = 100


def is_quiet(fd: int) -> bool:
    """Return whether a connection's last bytes went to the peer, some time ago, and all have arrived."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
            if _has_input(sock):
                return False
    except OSError:
        # Not a TCP connection, or it is closed.
        return True
    unacked, sent, received = (struct.unpack_from("=I", info, at)[0] for at in (_UNACKED, _SENT, _RECEIVED))
    return info[0] != _ESTABLISHED or (not unacked and sent <= received and min(sent, received) >= _SILENCE)


def _has_input(sock: socket.socket) -> bool:
    """Return whether bytes, or the end, wait to be read: the program has something to do."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True
