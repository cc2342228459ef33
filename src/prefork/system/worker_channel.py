"""The channel between a worker and its supervisor: packets in both directions.

Made before the fork, one for each worker. What the packets say is in `core/worker_requests.py`.

Descriptors go to the worker only. One that came from it could be of any kind, and a system call on it could block the
supervisor: a write to a full pipe, or a close of a file in FUSE.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import socket
import threading
import time

# Taken before a program runs: greenlets replace it by what waits in a loop of theirs (gevent), or remove it (eventlet).
from select import POLLIN, poll

from ..core.worker_requests import LIMIT, Answer, Request, decode_answer, encode_request

#: Seconds that the supervisor has to answer; it does so at once, but may be busy.
ANSWER_TIMEOUT = 10.0
#: Descriptors that are received at once, of which one is expected; the kernel closes any beyond.
_MAX_DESCRIPTORS = 4


class WorkerChannel:
    """A pair of sockets: the supervisor keeps `parent_end`, the worker `child_end`. Raises OSError."""

    __slots__ = ("__weakref__", "child_end", "parent_end")

    def __init__(self) -> None:
        # Packets, so that a worker cannot leave a part of one behind.
        self.parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent_end.setblocking(False)
        self.child_end = WorkerEnd(child_end)

    def close(self) -> None:
        """Close both ends in this process (idempotent)."""
        self.parent_end.close()
        self.child_end.close()


class WorkerEnd:
    """The worker's end, which it owns. One request at a time; any thread may ask."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def ask(self, request: Request, timeout: float = ANSWER_TIMEOUT) -> tuple[Answer | None, socket.socket | None]:
        """Return the supervisor's answer, and the socket that came with it, which the caller owns.

        The answer is None if none comes within `timeout` seconds, and for a request that is too long.
        """
        with self._lock, contextlib.suppress(EOFError, ValueError, OSError):
            number = next(self._numbers)
            until = time.monotonic() + timeout
            if not send(self._sock, encode_request(request, number)):
                return None, None
            while (received := _wait_for_packet(self._sock, until)) is not None:
                answer, answered = decode_answer(received[0])
                sock = None if received[1] is None else socket.socket(fileno=received[1])
                if answered == number:
                    return answer, sock
                # It came after the timeout of an earlier request.
                if sock is not None:
                    sock.close()
        return None, None


def send(sock: socket.socket, packet: bytes, fd: int | None = None) -> bool:
    """Send a packet, with a descriptor. Return False if the other end is gone or takes no more now. Never wait."""
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        return sock.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(packet)
    except OSError:
        return False


def receive(sock: socket.socket) -> bytes | None:
    """Return a packet, without the descriptors that came with it; None if there is none now. Never wait.

    Raises EOFError if the other end is gone, ValueError for a packet that is too long, OSError.
    """
    try:
        # Without room for descriptors the kernel installs none (unix(7), MSG_CTRUNC).
        data, _, flags, _ = sock.recvmsg(LIMIT, 0, socket.MSG_DONTWAIT)
    except (BlockingIOError, InterruptedError):
        return None
    if not data:
        raise EOFError("the other end of the channel is closed")
    if flags & socket.MSG_TRUNC:
        raise ValueError("a packet that is too long")
    return data


def receive_with_descriptor(sock: socket.socket) -> tuple[bytes, int | None] | None:
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


def _wait_for_packet(sock: socket.socket, until: float) -> tuple[bytes, int | None] | None:
    """Return the next packet, and the descriptor that came with it; None if there is none by `until`."""
    waiting = poll()
    waiting.register(sock, POLLIN)
    while (left := until - time.monotonic()) > 0:
        if waiting.poll(left * 1000 + 1):
            found = receive_with_descriptor(sock)
            if found is not None:
                return found
    return None
