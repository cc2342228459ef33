"""The channel on which a worker gets descriptors: of its console's clients, and of files that are handed out to it.

Made before the fork, one for each worker, beside that of `worker_channel.py`, so that clients never delay leases. What
clients and worker say to each other is in `core/console_protocol.py`; the supervisor sees none of it. What files are
handed out is in `tls_handout.py`. A worker only receives: nothing on this channel goes to the supervisor.
"""

from __future__ import annotations

import socket

from .descriptors import Descriptor
from .worker_channel import receive_with_descriptor, send

#: Bytes of the send buffer: a few clients wait for a worker that hangs, and no more. The kernel's minimum is larger.
_SEND_BUFFER = 4096
_CLIENT = b"c"
_HANDOUT = b"h"


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

    def hand_out(self, file: Descriptor) -> bool:
        """Send a file to the worker. Never wait. Return False if it takes none now, because it hangs or is gone."""
        return send(self.parent_end, _HANDOUT, file.fileno())

    def close(self) -> None:
        """Close both ends in this process (idempotent)."""
        self.parent_end.close()
        self.child_end.close()


def receive(child_end: socket.socket) -> socket.socket | Descriptor | None:
    """Return what waits in the worker's end, which the caller owns: a client, or a file that is handed out.

    None if nothing is there now. Never wait. Raises EOFError if the supervisor is gone, ValueError for what is neither,
    OSError without a free descriptor.
    """
    received = receive_with_descriptor(child_end)
    if received is None:
        return None
    kind, fd = received
    if fd is None:
        raise ValueError("a packet without a descriptor")
    if kind == _HANDOUT:
        return Descriptor(fd)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
