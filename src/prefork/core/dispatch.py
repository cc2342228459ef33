"""Dispatch: which worker serves a connection that one of them has accepted. Pure.

Why. All workers watch the same listening socket, a connection wakes every idle one, and the fastest accepts it. Left to
themselves, one of four workers gets nearly all of a trickle of connections, and 1.5 times the mean of a burst.

What each worker knows. Two numbers of its siblings, of at most 32 for each connection, read from shared memory without
a lock (`worker/fleet_admission.py`):
* `open`, its open connections, and those that wait in its inbox. Long connections become even by it.
* `assigned`, a virtual count of the connections that it was given, as in fair queueing. Short connections become even
  by it, because with those `open` is 0 nearly always. A new worker starts at the median of its siblings, and one that
  was blocked for long at most MAX_LAG below the lowest. Otherwise it would be given every connection until it has
  caught up.

What a worker does. It accepts at once. When a sibling has less, it passes the connection to the inbox of the one that
has the least (`worker/dispatch.py`); otherwise it serves the connection itself. Nothing is locked: two may choose
the same sibling at once, which differs from the exact balance by one connection. When the sibling can take no more, it
waits for a CPU. Then the worker serves the connection, and accepts nothing for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping

#: (open, assigned) of a worker.
Load = tuple[int, int]

#: Workers are equal if their open connections differ by no more than open / 2**SLACK_SHIFT. With many connections a
#: finer balance is worth less than what passing one on costs.
SLACK_SHIFT = 6
#: How much the assigned counts of equal workers may differ. Decides where connections are short.
ASSIGNED_SLACK = 4
#: How far a worker's assigned count may lag behind the lowest of its siblings.
MAX_LAG = 64


def choose(own: Load, siblings: Mapping[int, Load], slack: int = ASSIGNED_SLACK) -> int | None:
    """Return the sibling that is to serve a connection in place of a worker with the load `own`; None if it serves.

    `slack` is how much the assigned counts of equal workers may differ.
    """
    if not siblings:
        return None
    open, assigned = own
    least = min(siblings, key=siblings.__getitem__)
    if siblings[least][0] < open - (open >> SLACK_SHIFT):
        return least
    # A sibling with connections may be busy with them, so one that has none only.
    equal = {number: count for number, (other, count) in siblings.items() if not other}
    behind = min(equal, key=equal.__getitem__, default=None)
    return behind if behind is not None and equal[behind] < assigned - slack else None


def next_assigned(assigned: int, lowest: int | None) -> int:
    """Return the assigned count of a worker that gets a connection; `lowest` is the lowest of its siblings."""
    return (assigned if lowest is None else max(assigned, lowest - MAX_LAG)) + 1
