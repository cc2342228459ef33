"""The check that one state may follow another, shared by every lifecycle table in `core`.

It holds no table itself. It raises, because `python -O` removes an `assert`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import TypeVar

S = TypeVar("S", bound=enum.Enum)


def move(subject: str, table: Mapping[S, Collection[S]], before: S, after: S) -> S:
    """Return `after`. Raises RuntimeError unless `table` lists it among the states that may follow `before`."""
    if after not in table[before]:
        raise RuntimeError(f"{subject} cannot go from {before.name} to {after.name}")
    return after
