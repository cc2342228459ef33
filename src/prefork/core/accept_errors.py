"""What an error of `accept` means: which of three things it is about decides what happens next.

Pure: numbers in, verdicts out. Sources: accept(2), "Error handling", which asks that a TCP server treats the network's
errors of the new connection as if it had not come.
"""

from __future__ import annotations

import enum
import errno


class AcceptError(enum.Enum):
    """What an accept that failed is about."""

    EMPTY = enum.auto()
    """Nothing: the queue is empty. The batch ends."""
    CONNECTION = enum.auto()
    """That one connection, which is gone. The batch goes on."""
    CAPACITY = enum.auto()
    """This process, or the machine: no descriptors or memory. Accepting must rest, or it spins."""
    LISTENER = enum.auto()
    """The listening socket itself. It will not get better."""


_EMPTY = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
_LISTENER = frozenset({errno.EBADF, errno.ENOTSOCK, errno.EINVAL, errno.EFAULT})


def judge(code: int | None) -> AcceptError:
    """The verdict for an errno. One that nobody has heard of is the connection's: skipping is the mildest mistake,
    and the batch bounds it."""
    if code in _EMPTY:
        return AcceptError.EMPTY
    if code in _CAPACITY:
        return AcceptError.CAPACITY
    if code in _LISTENER:
        return AcceptError.LISTENER
    return AcceptError.CONNECTION
