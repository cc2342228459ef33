"""The options of a listening socket: one value from the command line to setsockopt(2), bind(2) and listen(2).

To add an option, add a field and set it in `sockets.py` (`_listen`) or `unix_sockets.py` (`_bind`). Options of accepted
connections do not belong here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Sharing(enum.Enum):
    """Which other sockets may have the same TCP port (SO_REUSEPORT)."""

    NONE = enum.auto()
    OPEN = enum.auto()
    """Any socket of this user that has SO_REUSEPORT, too."""
    CLAIMED = enum.auto()
    """The same from now on, but binding fails if any socket has the port already."""


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """What is set on a listening socket of either family. The defaults are those of Tornado's functions."""

    backlog: int = 128
    """Length of the queue of connections that wait to be accepted (listen(2))."""
    sharing: Sharing = Sharing.NONE
    group_size: int = 1
    """TCP sockets for each address; more than one form a reuseport group, and need a `sharing`."""
    mode: int = 0o600
    """Mode of a unix socket's file."""
    gid: int | None = None
    """Group of a unix socket's file; None: this process's."""
