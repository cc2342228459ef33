"""Inboxes: sockets by which the workers of one server pass accepted connections to each other, one for each slot.

They outlive workers, as listening sockets do, and every worker has both ends of all of them: what a dead or blocked
worker leaves in its inbox, its successor or any sibling can take. That gives no worker more than it has by the
listening sockets. Which connection goes where is decided in `core/dispatch.py`.

A worker may be hostile, so anything may be in an inbox, or nothing may go in or out any more: see `receive` and `send`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios

#: Bytes that the kernel counts for one message (a skb), as unix(7) sockets report them by TIOCOUTQ.
_MESSAGE_BYTES = 768
#: Maximum number of connections in an inbox, and so the number that may wait for a blocked worker.
CAPACITY = 8
_TAG = struct.Struct("=q")
_NO_LINGER = struct.pack("ii", 0, 0)
#: Descriptors that are received at once, of which only one is expected: the kernel closes any beyond.
_MAX_DESCRIPTORS = 4
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


class Inboxes:
    """The inboxes of slots 0 to `count` - 1, shared with every process that is forked after construction."""

    def __init__(self, count: int) -> None:
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            for _ in range(count):
                self._pairs.append(_pair())
        except OSError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._pairs)

    def close(self) -> None:
        for pair in self._pairs:
            for sock in pair:
                sock.close()

    def repair(self, slot: int) -> None:
        """Replace an inbox that a worker has shut down: those that are forked afterwards have the new one.

        For the process that made the inboxes. Keeps the old one if the system has no descriptors for another.
        """
        if slot >= len(self._pairs):
            return
        try:
            shut_down = not self._pairs[slot][1].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as exc:
            shut_down = not isinstance(exc, BlockingIOError)
        if shut_down:
            with contextlib.suppress(OSError):
                old, self._pairs[slot] = self._pairs[slot], _pair()
                for sock in old:
                    sock.close()

    def fileno(self, slot: int) -> int:
        """Return the descriptor that is readable while a connection waits in the inbox of `slot`."""
        return self._pairs[slot][1].fileno()

    def waiting(self, slot: int) -> int:
        """Return the number of connections in the inbox of `slot`; 0 for a slot without one."""
        if slot >= len(self._pairs):
            return 0
        try:
            answer = fcntl.ioctl(self._pairs[slot][0], termios.TIOCOUTQ, b"\0\0\0\0")
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0]) // _MESSAGE_BYTES

    def send(self, slot: int, fd: int, tag: int = 0) -> bool:
        """Put a connection into the inbox of `slot`, with a number. Return False if it cannot take it.

        The inbox may be full, a worker may have shut it down, or the kernel may have no room for one more descriptor
        on its way (unix(7), ETOOMANYREFS). `fd` stays the caller's, to be closed by it in either case.
        """
        if slot >= len(self._pairs):
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            # Not blocking by a flag, because O_NONBLOCK belongs to all workers: one of them may clear it.
            return self._pairs[slot][0].sendmsg([_TAG.pack(tag)], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) > 0
        except OSError:
            return False

    def receive(self, slot: int) -> tuple[socket.socket, int] | None:
        """Take a connection and its number out of the inbox of `slot`. Return None if there is none.

        Raises ValueError for a message that is no connection, which is discarded. Raises EOFError if a worker has shut
        the inbox down: nothing can be passed by it any more. Raises OSError (EMFILE) without a free descriptor.
        """
        # Without one the kernel would discard the connection, and tell it by a flag only (unix(7), MSG_CTRUNC).
        os.close(os.dup(self.fileno(slot)))
        space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4)
        try:
            data, ancillary, _, _ = self._pairs[slot][1].recvmsg(
                _TAG.size, space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        if not data and not descriptors:
            raise EOFError(f"inbox {slot} was shut down")
        sock = _connection(list(descriptors))
        if len(data) != _TAG.size:
            sock.close()
            raise ValueError(f"a socket with {len(data)} bytes")
        return sock, _TAG.unpack(data)[0]


def _pair() -> tuple[socket.socket, socket.socket]:
    """Return the sending and the receiving end of an inbox."""
    # Packets, so that one receive takes one connection.
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # The kernel doubles the number (socket(7)).
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CAPACITY * _MESSAGE_BYTES // 2)
    except OSError:
        for sock in pair:
            sock.close()
        raise
    return pair


def _connection(descriptors: list[int]) -> socket.socket:
    """Return the one descriptor as a socket. Raises ValueError, and closes all, if it is no stream connection."""
    sock = None
    if len(descriptors) == 1:
        with contextlib.suppress(OSError):
            sock = socket.socket(fileno=descriptors[0])
    if sock is None:
        for fd in descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise ValueError(f"{len(descriptors)} descriptors that are no socket")
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM or _is_listening(sock):
        sock.close()
        raise ValueError("a socket that is no connection")
    # A hostile worker may have set it: a close would block until the peer has acknowledged everything (socket(7)).
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    return sock


def _is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return True
