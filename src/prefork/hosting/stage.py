"""The life of a worker that runs a program, as what the program calls has to know it."""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """The stages of a worker, in this order."""

    SERVING = enum.auto()
    """Connections are accepted."""
    EMPTYING = enum.auto()
    """The server stops: what waits in the accept queues is accepted, because nothing accepts it later."""
    STOPPED = enum.auto()
    """Nothing is accepted; open connections go on."""
    CHILD = enum.auto()
    """A process that the program has forked: it has the sockets, and nothing of it is counted here."""
