"""What processes cost by the kernel's books in /proc: memory, CPU time, and how busy the machine is with others.

The CPU time of a measurement is not read here but by the generator itself (`load/account.c`), which knows when it
begins and ends to count.
"""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path


def resident(pid: int) -> int:
    """Bytes of memory that process `pid` has in RAM, pages shared with others included."""
    return _rollup(pid)["Rss"]


def proportional(pid: int) -> int:
    """The same with each shared page divided by the number of those who share it."""
    return _rollup(pid)["Pss"]


def _rollup(pid: int) -> dict[str, int]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def descriptors(pid: int) -> int:
    """How many descriptors process `pid` has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_seconds(pid: int) -> float:
    """CPU time of process `pid` up to now: its CPU clock, as clock_getcpuclockid(3) makes it of a pid. Exact while it
    sleeps; while it runs, up to a tick of the kernel's timer is missing."""
    return time.clock_gettime(~pid << 3 | 2)


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    return int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many descriptors as they may have; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class OthersMeter:
    """How much of the machine's CPU time went to processes that are not ours, from construction on.

    Ours are this process and its children that have been waited for; so read it when no child is left.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = self._read_busy()
        self._ours = self._read_ours()

    def share(self) -> float:
        """0 to 1, of all CPUs together."""
        whole = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        others = self._read_busy() - self._busy - (self._read_ours() - self._ours)
        return max(0.0, others / whole) if whole else 0.0

    @staticmethod
    def _read_busy() -> float:
        # user, nice, system, idle, iowait, irq, softirq, steal (proc_stat(5)); steal is what other machines took.
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _read_ours() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)
