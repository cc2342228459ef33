"""What /proc tells of processes and sockets that may end at any moment (proc(5))."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; none of them once the process has been reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def state(pid: int) -> str:
    """Return the letter of the state of a process, "Z" once it has ended and "" once it has been reaped."""
    return (_stat(pid) or [""])[0]


def gone(pid: int) -> bool:
    return state(pid) in ("", "Z")


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used up to now."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_share(*pids: int, seconds: float = 1.0) -> float:
    """Watch processes for `seconds`; return the share of one core that the busiest of them used."""
    before = {pid: cpu_seconds(pid) for pid in pids}
    began = time.monotonic()
    time.sleep(seconds)
    return max(cpu_seconds(pid) - used for pid, used in before.items()) / (time.monotonic() - began)


def children(pid: int) -> list[int]:
    """Return the children of a process without threads, those that it has not reaped included."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(parent: int) -> list[int]:
    return [pid for pid in children(parent) if state(pid) == "Z"]


def session_members(leader: int) -> list[int]:
    """Return the living processes of a session."""
    processes = ((int(entry), _stat(int(entry))) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid, fields in processes if fields and int(fields[3]) == leader and fields[0] != "Z"]


def open_files(pid: int) -> dict[int, str]:
    """Return what each descriptor of a process names. One that the process closes meanwhile is left out."""
    found = {}
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(entry)] = os.readlink(f"/proc/{pid}/fd/{entry}")
    return found


def tcp_sockets(port: int, state: str) -> list[int]:
    """Return the receive queue of each IPv4 socket that has `port` itself and is in `state`.

    `state` is as in /proc/net/tcp: "01" for established (the queue is bytes), "0A" for listening (connections).
    """
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == state]
