"""What an errno of accept(2) is about, which decides what the acceptor does next.

Pure. Source: accept(2), "Error handling", which asks TCP servers to treat a network error of the new connection like
EAGAIN and retry.
"""

from __future__ import annotations

import enum
import errno


class AcceptError(enum.Enum):
    """The four kinds of failure of accept(2)."""

    EMPTY = enum.auto()
    """The queue is empty: end the batch."""
    CONNECTION = enum.auto()
    """This one connection failed and is gone: go on with the batch."""
    CAPACITY = enum.auto()
    """The process or the machine is out of descriptors or memory: pause, otherwise the loop spins."""
    LISTENER = enum.auto()
    """The listening socket itself is broken and will stay so."""


_KINDS: dict[int | None, AcceptError] = {
    **dict.fromkeys((errno.EAGAIN, errno.EWOULDBLOCK), AcceptError.EMPTY),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC), AcceptError.CAPACITY),
    **dict.fromkeys((errno.EBADF, errno.ENOTSOCK, errno.EINVAL, errno.EFAULT), AcceptError.LISTENER),
}
_UNKNOWN = AcceptError.CONNECTION


def classify(code: int | None) -> AcceptError:
    """Return the kind of an errno. An unknown one is CONNECTION: the mildest mistake, and the batch bounds it."""
    return _KINDS.get(code, _UNKNOWN)
