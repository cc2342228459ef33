"""How many processors this process may use: by its affinity and by the quotas of the control groups it is in.

Reads /proc and /sys; nothing is changed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from . import cgroups


def cpu_count(root: str | os.PathLike[str] = "/") -> int:
    """The number of usable CPUs, at least 1: the processors of the affinity mask, less if a cgroup's quota is lower.

    A quota is rounded up: a container with 1.5 CPUs gets two workers. `root` is where /proc and /sys are looked for.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota in _quotas(Path(root)):
        count = min(count, math.ceil(quota))
    return max(count, 1)


def _quotas(root: Path) -> Iterator[float]:
    """The quota of each control group from ours up to the root, in CPUs (cgroup-v2.rst, cpu.max)."""
    for folder in cgroups.unified(root):
        yield from _ratio(cgroups.read(folder / "cpu.max").split())
    for folder in cgroups.legacy("cpu", root):
        quota, period = (cgroups.read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        yield from _ratio([quota, period])


def _ratio(fields: list[str]) -> Iterator[float]:
    """`["150000", "100000"]` is 1.5; "max" and -1 are no limit."""
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (IndexError, ValueError):
        return
    if quota > 0 and period > 0:
        yield quota / period
