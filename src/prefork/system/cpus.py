"""The number of CPUs that this process may use, by its affinity mask and the quotas of its control groups.

Reads /proc and /sys, and changes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from . import cgroups


def cpu_count(root: str | os.PathLike[str] = "/") -> int:
    """Return the number of usable CPUs, at least 1: those of the affinity mask, or a lower quota of a cgroup.

    A quota is rounded up: a container with 1.5 CPUs gets two workers. `root` is the directory that has proc and sys.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(Path(root)):
        count = min(count, math.ceil(quota))
    return max(count, 1)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quota of each control group from this process's up to the root, in CPUs (cgroup-v2.rst, cpu.max)."""
    for folder in cgroups.unified(root):
        yield from _ratio(cgroups.read(folder / "cpu.max").split())
    for folder in cgroups.legacy("cpu", root):
        quota, period = (cgroups.read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        yield from _ratio([quota, period])


def _ratio(fields: list[str]) -> Iterator[float]:
    """Yield 1.5 for `["150000", "100000"]`, and nothing for "max" and -1, which are no limit."""
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (IndexError, ValueError):
        return
    if quota > 0 and period > 0:
        yield quota / period
