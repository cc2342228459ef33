"""What is left of a worker when it is gone: orphans, which come to the supervisor.

A worker leads a process group of its own, which ends with it (`Child.lead_group`). What has left the group (setsid(2),
a daemon that forks twice) comes to the supervisor when its parent ends, as the supervisor is a subreaper (prctl(2)).
When orphans are to end is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from .parent_death import load_prctl
from .processes import System

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
#: Seconds between looks, while orphans that were killed are waited for.
_LOOK = 0.005


class AdoptedProcesses:
    """Children of this process that it has not made. From construction on it is a subreaper, where that can be had;
    children that it has by then are their owners'."""

    def __init__(self, system: System) -> None:
        self._system = system
        prctl = load_prctl()
        if os.getpid() != 1 and prctl is not None:
            prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._known = frozenset(_children() or ())

    def reap(self, ours: Collection[int]) -> None:
        """Take the exit statuses of those that have ended; `ours` are children of our own, whose owners do that."""
        children = _children()
        if children is not None:
            self._system.reap_orphans(self._unknown(children, ours))
        elif os.getpid() == 1:
            self._system.reap_adopted(ours)

    def end(self, ours: Collection[int], seconds: float) -> None:
        """Kill them, and what comes to us as they die, for so many seconds at the most."""
        deadline = self._system.monotonic() + seconds
        while left := self._unknown(_children() or (), ours):
            if self._system.monotonic() > deadline:
                return
            self._system.kill_orphans(left)
            self._system.reap_orphans(left)
            self._system.rest(_LOOK)

    def _unknown(self, children: Collection[int], ours: Collection[int]) -> list[int]:
        return [pid for pid in children if pid not in ours and pid not in self._known]


def _children() -> list[int] | None:
    """The children of this process, of all its threads (proc(5)); None where that is not told."""
    found: list[int] = []
    try:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    except OSError:
        return None
    return found
