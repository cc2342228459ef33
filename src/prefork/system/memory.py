"""Memory of this process: its resident size, what its allocator keeps, and which workers the OOM killer has killed.

Only reads /proc and /sys.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Literal

from . import cgroups


def resident_bytes() -> int:
    """Return this process's resident size in bytes; 0 if it is not known."""
    return resident_bytes_of("self") or 0


def resident_bytes_of(pid: int | Literal["self"]) -> int | None:
    """Return a process's resident size in bytes, shared pages included (proc(5), statm); None if it is not known."""
    fields = cgroups.read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[1]) * mmap.PAGESIZE if len(fields) > 1 else None


#: Bytes; larger than anything that is received or sent at once.
_LARGE = 1024 * 1024


def prime_malloc() -> None:
    """Free one large block, so that glibc's allocator keeps large blocks from now on.

    Before that it maps and unmaps memory for each block of 128 KiB or more, and returns the end of the heap as soon as
    that much is free. Each page of each large read would then fault: 20 us for 256 KiB (mallopt(3), "dynamic mmap
    threshold").
    """
    bytes(_LARGE)


#: Seconds within which the deaths of one memory shortage become known.
_ATTRIBUTION_WINDOW = 1.0


class OomKills:
    """Tells OOM kills in this process's control group from other deaths by SIGKILL.

    The kernel does not say why a process got the signal; it only counts kills (cgroup-v2.rst, memory.events; version 1:
    memory.oom_control). Each counted kill is attributed to one death within the next second.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [directory / "memory.events" for directory in cgroups.unified(root)][:1]
        self._files += [directory / "memory.oom_control" for directory in cgroups.legacy("memory", root)]
        self._files = [path for path in self._files if cgroups.read(path)][:1]
        self._counted = self._read()
        self._unattributed = 0
        self._until = 0.0

    def attribute(self, now: float) -> bool:
        """Return whether a death by SIGKILL, seen `now`, was an OOM kill; each counted kill explains one death."""
        before, self._counted = self._counted, self._read()
        if now > self._until:
            self._unattributed = 0
        if self._counted > before:
            self._unattributed += self._counted - before
            self._until = now + _ATTRIBUTION_WINDOW
        if not self._unattributed:
            return False
        self._unattributed -= 1
        return True

    def _read(self) -> int:
        for path in self._files:
            found = re.search(r"^oom_kill (\d+)$", cgroups.read(path), re.M)
            if found:
                return int(found[1])
        return 0
