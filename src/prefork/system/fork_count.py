"""The number of forks of this process since this module was imported: a child holds a copy of every open descriptor."""

from __future__ import annotations

import os

_count = 0


def _increment() -> None:
    global _count
    _count += 1


def fork_count() -> int:
    """Return the number of forks.

    Children that execute another program at once (subprocess) do not count, because exec closes their copies.
    """
    return _count


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_increment)
