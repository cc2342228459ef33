"""Memory of this process: what it has resident, what its allocator keeps, and whom a control group's limit has killed.

Reads /proc and /sys.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from . import cgroups


def resident() -> int:
    """Bytes of this process in memory, shared ones included (proc(5), statm); 0 where that is not told."""
    fields = cgroups.read(Path("/proc/self/statm")).split()
    return int(fields[1]) * mmap.PAGESIZE if len(fields) > 1 else 0


#: Larger than anything that is received or sent at once.
_LARGE = 1024 * 1024


def prime_malloc() -> None:
    """Until glibc's allocator has seen a large block freed, it maps and unmaps memory for each one of 128 KiB or more,
    and gives the end of the heap back as soon as so much is free: a fault for every page of every large read, 20 us for
    256 KiB (mallopt(3), "dynamic mmap threshold"). So it is shown one."""
    bytes(_LARGE)


#: Seconds in which the deaths of one shortage become known.
_MOMENT = 1.0


class OomKills:
    """Tells deaths for want of memory in this process's control group from other deaths by SIGKILL.

    The kernel does not say of a process why it got the signal; it counts (cgroup-v2.rst, memory.events; in version 1
    memory.oom_control). What it has killed is given to deaths of the same moment, one each.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [folder / "memory.events" for folder in cgroups.unified(root)][:1]
        self._files += [folder / "memory.oom_control" for folder in cgroups.legacy("memory", root)]
        self._files = [path for path in self._files if cgroups.read(path)][:1]
        self._seen = self._read()
        self._left = 0
        self._until = 0.0

    def claim(self, now: float) -> bool:
        """Whether a death by SIGKILL, seen `now`, was one of these. Each count is given away once."""
        before, self._seen = self._seen, self._read()
        if now > self._until:
            self._left = 0
        if self._seen > before:
            self._left += self._seen - before
            self._until = now + _MOMENT
        if not self._left:
            return False
        self._left -= 1
        return True

    def _read(self) -> int:
        for path in self._files:
            found = re.search(r"^oom_kill (\d+)$", cgroups.read(path), re.M)
            if found:
                return int(found[1])
        return 0
