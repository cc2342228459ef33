"""What a process uses: memory, CPU time and descriptors, as /proc tells. What it is used for is not known here."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from .descriptors import count_descriptors
from .memory import resident_bytes_of

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
    return Usage(resident_bytes_of(pid), _cpu_seconds(pid), count_descriptors(pid, _MAX_LISTED))


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


def _cpu_seconds(pid: int) -> float | None:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    if len(fields) <= _STIME:
        return None
    return (int(fields[_UTIME]) + int(fields[_STIME])) / os.sysconf("SC_CLK_TCK")
