"""The life of the server as a whole, and the table of what may follow what.

Data only; `roster.py` decides when the phase changes.
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """The life of the server. It only goes forward, but for LEAVING to SERVING: the other supervisor died."""

    BOOTING = enum.auto()
    """No worker has ever been ready. One that cannot start ends the program."""
    SERVING = enum.auto()
    LEAVING = enum.auto()
    """Another supervisor serves, and the workers here are draining."""
    STOPPING = enum.auto()
    FINISHED = enum.auto()


NEXT_PHASES = {
    Phase.BOOTING: {Phase.SERVING, Phase.STOPPING},
    Phase.SERVING: {Phase.LEAVING, Phase.STOPPING},
    Phase.LEAVING: {Phase.SERVING, Phase.STOPPING, Phase.FINISHED},
    Phase.STOPPING: {Phase.STOPPING, Phase.FINISHED},
    Phase.FINISHED: set[Phase](),
}
