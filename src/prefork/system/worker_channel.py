"""The channel between a worker and its supervisor: packets in both directions, which may carry one descriptor.

Made before the fork, one for each worker. What the packets say is in `core/worker_requests.py`.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time

from ..core.worker_requests import LIMIT

#: Descriptors that are received at once, of which one is expected; the kernel closes any beyond.
_MAX_DESCRIPTORS = 4


class WorkerChannel:
    """A pair of sockets: the supervisor keeps `parent_end`, the worker `child_end`. Raises OSError."""

    __slots__ = ("__weakref__", "child_end", "parent_end")

    def __init__(self) -> None:
        # Packets, so that a worker cannot leave a part of one behind.
        self.parent_end, self.child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent_end.setblocking(False)

    def close(self) -> None:
        """Close both ends in this process (idempotent)."""
        self.parent_end.close()
        self.child_end.close()


def send(sock: socket.socket, packet: bytes, fd: int | None = None) -> bool:
    """Send a packet, with a descriptor. Return False if the other end is gone or takes no more now. Never wait."""
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        return sock.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(packet)
    except OSError:
        return False


def receive(sock: socket.socket) -> tuple[bytes, int | None] | None:
    """Return a packet and the descriptor that came with it, which the caller owns; None if there is none now.

    Never wait. Raises EOFError if the other end is gone, ValueError for a packet that is too long or has more than one
    descriptor, OSError without a free descriptor.
    """
    # Without one the kernel would discard what came, and tell it by a flag only (unix(7), MSG_CTRUNC).
    os.close(os.dup(sock.fileno()))
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            LIMIT, socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except (BlockingIOError, InterruptedError):
        return None
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if not data and not descriptors:
        raise EOFError("the other end of the channel is closed")
    if len(descriptors) > 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise ValueError("a packet that is too long, or has several descriptors")
    return data, descriptors[0] if descriptors else None


def wait_for_packet(sock: socket.socket, timeout: float) -> tuple[bytes, int | None] | None:
    """Return the next packet as `receive` does, within `timeout` seconds; None if there is none by then."""
    until = time.monotonic() + timeout
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        if poll.poll(left * 1000 + 1):
            found = receive(sock)
            if found is not None:
                return found
    return None
