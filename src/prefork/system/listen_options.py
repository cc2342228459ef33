"""The options of a listening socket: one value from the command line to setsockopt(2), bind(2) and listen(2).

To add an option, add a field, set it in `apply`, and name it in `APPLIED` if `socket_snapshot.py` checks it. Options of
accepted connections do not belong here.
"""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass


class Sharing(enum.Enum):
    """Which other sockets may have the same TCP port (SO_REUSEPORT)."""

    NONE = enum.auto()
    OPEN = enum.auto()
    """Any socket of this user that has SO_REUSEPORT, too."""
    CLAIMED = enum.auto()
    """The same from now on, but binding fails if any socket has the port already: a second server of the same user
    would otherwise silently get a part of the connections."""


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """What is set on a listening socket of either family. The defaults are those of Tornado's functions."""

    backlog: int = 128
    """Max. length of the accept queue (listen(2))."""
    sharing: Sharing = Sharing.NONE
    group_size: int = 1
    """TCP sockets for each address; more than one form a reuseport group, and need a `sharing`."""
    mode: int = 0o600
    """Mode of a unix socket's file."""
    listens: bool = True
    """Listen at once; otherwise a worker does, when its program calls listen(2)."""
    gid: int | None = None
    """Group of a unix socket's file; None: this process's."""

    def apply(self, sock: socket.socket) -> None:
        """Listen on a bound socket with these options; on one that listens already, change them. Raises OSError.

        `sharing`, `group_size`, `mode` and `gid` belong to the binding, see `sockets.py` and `unix_sockets.py`.
        """
        sock.setblocking(False)
        if self.listens:
            sock.listen(self.backlog)


#: The settings that `apply` changes, by their names in `socket_snapshot.py`.
APPLIED = frozenset({"backlog"})
