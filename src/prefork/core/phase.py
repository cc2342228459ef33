"""The life of the server as a whole, and the table of what may follow what.

Data only; `roster.py` decides when the phase changes.
"""

from __future__ import annotations

import enum


class ServerPhase(enum.Enum):
    """The life of the server. It only goes forward, but for LEAVING to SERVING: the other supervisor died."""

    BOOTING = enum.auto()
    """No worker has ever been ready. One that cannot start ends the program."""
    SERVING = enum.auto()
    LEAVING = enum.auto()
    """Another supervisor serves, and the workers here are draining."""
    STOPPING = enum.auto()
    FINISHED = enum.auto()


NEXT_PHASES = {
    ServerPhase.BOOTING: {ServerPhase.SERVING, ServerPhase.STOPPING},
    ServerPhase.SERVING: {ServerPhase.LEAVING, ServerPhase.STOPPING},
    ServerPhase.LEAVING: {ServerPhase.SERVING, ServerPhase.STOPPING, ServerPhase.FINISHED},
    ServerPhase.STOPPING: {ServerPhase.STOPPING, ServerPhase.FINISHED},
    ServerPhase.FINISHED: set[ServerPhase](),
}
