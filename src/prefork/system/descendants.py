"""Reap and kill the orphans that dead workers leave to the supervisor.

A worker leads a process group, which is killed when the worker has ended (`Child.lead_group`). A process that left the
group (setsid(2), a daemon that forks twice) becomes a child of the supervisor when its parent ends, because the
supervisor is a subreaper (prctl(2)). The supervisor decides when such orphans are killed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from .parent_death import load_prctl
from .processes import System

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
#: Seconds between checks while killed orphans are waited for.
_POLL_INTERVAL = 0.005


class AdoptedProcesses:
    """Children that this process did not fork. Makes this process a subreaper if the system can do that.

    Children that exist at construction are left alone: they belong to other code in this process.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        prctl = load_prctl()
        if os.getpid() != 1 and prctl is not None:
            prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._ignored = frozenset(_children() or ())

    def reap(self, own: Collection[int]) -> None:
        """Reap the adopted children that have ended. `own` are pids that the caller forked and reaps itself."""
        children = _children()
        if children is not None:
            self._system.reap(self._adopted(children, own))
        elif os.getpid() == 1:
            self._system.reap_adopted(own)

    def kill(self, own: Collection[int], seconds: float) -> None:
        """Kill the adopted children, and those that arrive as they die; give up after `seconds`."""
        deadline = self._system.monotonic() + seconds
        while left := self._adopted(_children() or (), own):
            if self._system.monotonic() > deadline:
                return
            self._system.kill(left)
            self._system.reap(left)
            self._system.sleep(_POLL_INTERVAL)

    def _adopted(self, children: Collection[int], own: Collection[int]) -> list[int]:
        return [pid for pid in children if pid not in own and pid not in self._ignored]


def has_children(pid: int) -> bool:
    """Return whether a process has children, as far as /proc tells."""
    return bool(_children(str(pid)))


def children_of(pid: int) -> list[int]:
    """Return the children of a process, as far as /proc tells."""
    return _children(str(pid)) or []


def _children(process: str = "self") -> list[int] | None:
    """Return the children of all threads of a process (proc(5)); None if /proc does not tell."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    except OSError:
        return None
    return found
