"""What the children of `fork_processes` share so that they accept evenly: made before the fork, inherited by each.

State of the process by its nature, set at most once. What a child does with it is in `worker/accept_handler.py`.
"""

from __future__ import annotations

import atexit
from dataclasses import dataclass

from .inboxes import Inboxes
from .scoreboard import Row, Scoreboard


@dataclass(frozen=True, slots=True)
class ForkedFleet:
    """The shared memory and the inboxes of children 0 to `count` - 1, and which of them this process is."""

    scoreboard: Scoreboard
    inboxes: Inboxes
    slot: int = 0

    @classmethod
    def of(cls, count: int) -> ForkedFleet:
        """Make what `count` children share. Raises OSError if there is no memory, or no descriptor, for it."""
        scoreboard = Scoreboard(count)
        try:
            inboxes = Inboxes(count)
        except OSError:
            scoreboard.close()
            raise
        # All may accept; those that do say so by their heartbeats.
        scoreboard.publish({slot + 1: slot for slot in range(count)}, {})
        return cls(scoreboard, inboxes)

    @property
    def row(self) -> Row:
        return self.scoreboard.row(self.slot + 1)


_fleet: ForkedFleet | None = None


def set_fleet(fleet: ForkedFleet, slot: int) -> None:
    """Note, in a new child, what it shares and which child it is."""
    global _fleet
    _fleet = ForkedFleet(fleet.scoreboard, fleet.inboxes, slot)
    # Otherwise Python warns at exit of sockets that the program has never seen.
    atexit.register(fleet.inboxes.close)


def current_fleet() -> ForkedFleet | None:
    """Return what this child of `fork_processes` shares; None in any other process."""
    return _fleet
