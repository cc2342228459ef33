"""Say which supervisor owns, and unlinks, the unix sockets and the pidfile during an upgrade.

The supervisor decides when ownership changes.
"""

from __future__ import annotations

import enum


class FileOwnership(enum.Enum):
    """What this supervisor owns while its predecessor or its successor may be alive."""

    PROVISIONAL = enum.auto()
    """The predecessor still serves, or may serve again: it owns the inherited files."""
    OWNER = enum.auto()
    """This supervisor owns every file."""
    RELEASED = enum.auto()
    """The successor owns every file."""

    def owns(self, inherited: bool) -> bool:
        """Return whether this supervisor unlinks a file that was `inherited`, or that it made itself."""
        return self is FileOwnership.OWNER or (self is FileOwnership.PROVISIONAL and not inherited)
