"""Whose the files are that stay when a supervisor leaves to another one: sockets in the file system, the pidfile.

A word and its one question. Who says when it changes is the supervisor.
"""

from __future__ import annotations

import enum


class FileOwnership(enum.Enum):
    """How a supervisor stands to the one before it, and the one after."""

    PROVISIONAL = enum.auto()
    """The one before serves yet, or may again: what was inherited is its own."""
    OWNER = enum.auto()
    """Everything is ours."""
    LEAVING = enum.auto()
    """Everything is a successor's."""

    def owns(self, inherited: bool) -> bool:
        """Whether a file is ours to remove, which was `inherited` or not."""
        return self is FileOwnership.OWNER or (self is FileOwnership.PROVISIONAL and not inherited)
