"""What /proc says of processes: states, children, descriptors, processor time; and stopping and killing them for sure.

Waits on conditions, with deadlines. Knows nothing of prefork.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import HarnessError


def wait_until(condition: Callable[[], object], deadline: float, what: str, pause: float = 0.002) -> None:
    """Raises HarnessError, naming `what`, if `condition()` is not true within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise HarnessError(f"not within {deadline:g} s: {what}")
        time.sleep(pause)


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, group, session ...; none without a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def state(pid: int) -> str:
    """`R`, `S`, `T`, `Z` ...; "" if there is no such process."""
    return (stat(pid) or [""])[0]


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    return state(pid) not in ("", "Z", "X")


def session(leader: int) -> list[int]:
    """The living processes of the session that `leader` made, also those that have lost their parents."""
    found = []
    for entry in os.listdir("/proc"):
        if (
            entry.isdigit()
            and (fields := stat(int(entry)))
            and fields[3] == str(leader)
            and fields[0] not in ("Z", "X")
        ):
            found.append(int(entry))
    return found


def children(pid: int) -> list[int]:
    """Return all children of a process, zombies included."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def descriptors(pid: int, looks: int = 20) -> int:
    """Return the minimum of the numbers of open files within 0.5 s, because a few files come and go."""
    counts = []
    for _ in range(looks):
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(0.5 / looks)
    return min(counts)


def sockets(pid: int) -> set[int]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{entry}")
            if link.startswith("socket:["):
                found.add(int(link[8:-1]))
    return found


def processor_seconds(pid: int) -> float:
    """What a process has had of the processors, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def resident(pid: int) -> int:
    """Bytes of a process in memory, shared ones included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE


def switches(pid: int) -> int:
    """How often it went to sleep by itself, which is how often it was woken up."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


def stop(pids: Iterable[int]) -> None:
    """SIGSTOP, and wait until every one of them has stopped."""
    found = list(pids)
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state(pid) in ("T", "Z", "") for pid in found), 5.0, "stopped processes", 0.0005)


def resume(pids: Iterable[int]) -> None:
    """SIGCONT, to those that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    """SIGKILL, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_and_wait(pid: int) -> None:
    """The same, and wait until it is dead. Its parent may still have to reap it."""
    kill(pid)
    wait_until(lambda: not alive(pid), 10.0, f"the end of process {pid}", 0.0002)


def ended_at(pids: Iterable[int], deadline: float) -> dict[int, float]:
    """When each process ended, on the monotonic clock; those that have not within `deadline` seconds are missing."""
    poll = select.poll()
    open_fds: dict[int, int] = {}
    times: dict[int, float] = {}
    end = time.monotonic() + deadline
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                open_fds[fd] = pid
                poll.register(fd, select.POLLIN)
        while open_fds and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                times[open_fds.pop(fd)] = time.monotonic()
                poll.unregister(fd)
                os.close(fd)
    finally:
        for fd in open_fds:
            os.close(fd)
    return times
