"""How often this process has forked, by whatever part of it: its children hold all descriptors that were open then.

Counts from the import on. Who forks, and whether it should, is others' business.
"""

from __future__ import annotations

import os

_made = 0


def _count() -> None:
    global _made
    _made += 1


def made() -> int:
    """The number. Children that run another program at once (subprocess) do not count: exec closes what they have."""
    return _made


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_count)
