"""What a process uses: memory, CPU time and descriptors, as /proc tells. What it is used for is not known here."""

from __future__ import annotations

import mmap
import os
import resource
from dataclasses import dataclass

#: The fields of /proc/PID/stat behind the name, which may contain anything: user and system time (proc_pid_stat(5)).
_UTIME, _STIME = 11, 12
#: Descriptors up to which they are counted one by one on a kernel that does not count them: a longer list takes 10 ms.
_MAX_LISTED = 10_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process uses now; None where the system does not tell."""

    rss: int | None
    """Resident memory in bytes, shared pages included."""
    cpu: float | None
    """Seconds of user and system time since its start."""
    descriptors: int | None


def usage_of(pid: int) -> Usage:
    """Read what a process uses; nothing is known of one that has ended."""
    return Usage(_resident(pid), _cpu_seconds(pid), _descriptors(pid))


def reaped_seconds() -> float:
    """Return the CPU time of all children that this process has reaped, with the children that they had reaped."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="ascii", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def _resident(pid: int) -> int | None:
    fields = _read(pid, "statm").split()
    return int(fields[1]) * mmap.PAGESIZE if len(fields) > 1 else None


def _cpu_seconds(pid: int) -> float | None:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if len(fields) <= _STIME:
        return None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")


def _descriptors(pid: int) -> int | None:
    path = f"/proc/{pid}/fd"
    try:
        # Linux 6.2 and newer gives the number as the size of the directory.
        counted = os.stat(path).st_size
        if counted:
            return counted
        with os.scandir(path) as entries:
            found = sum(1 for _, _ in zip(entries, range(_MAX_LISTED), strict=False))
    except OSError:
        return None
    return found if found < _MAX_LISTED else None
