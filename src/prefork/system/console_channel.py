"""The channel on which a worker gets its console's clients: descriptors, from the supervisor to the worker.

Made before the fork, one for each worker, beside that of `worker_channel.py`, so that clients never delay leases. What
clients and worker say to each other is in `core/console_protocol.py`; the supervisor sees none of it.
"""

from __future__ import annotations

import socket

from .worker_channel import receive_with_descriptor, send

#: Bytes of the send buffer: a few clients wait for a worker that hangs, and no more. The kernel's minimum is larger.
_SEND_BUFFER = 4096
_CLIENT = b"c"


class ConsoleChannel:
    """A pair of sockets: the supervisor keeps `parent_end`, the worker `child_end`. Raises OSError."""

    __slots__ = ("__weakref__", "child_end", "parent_end")

    def __init__(self) -> None:
        self.parent_end, self.child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.parent_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.parent_end.setblocking(False)
        self.child_end.setblocking(False)

    def connect(self) -> socket.socket | None:
        """Return a new connection to the worker's console, which the caller owns. Never wait.

        None if the worker takes none now, because it hangs or is gone, or if the system lacks a resource.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return None
        with theirs:
            if send(self.parent_end, _CLIENT, theirs.fileno()):
                return ours
        ours.close()
        return None

    def close(self) -> None:
        """Close both ends in this process (idempotent)."""
        self.parent_end.close()
        self.child_end.close()


def receive_client(child_end: socket.socket) -> socket.socket | None:
    """Return a client that waits in the worker's end, which the caller owns; None if there is none now.

    Never wait. Raises EOFError if the supervisor is gone, ValueError for what is no client, OSError without a free
    descriptor.
    """
    received = receive_with_descriptor(child_end)
    if received is None:
        return None
    if received[1] is None:
        raise ValueError("a packet without a descriptor")
    sock = socket.socket(fileno=received[1])
    sock.setblocking(False)
    return sock
