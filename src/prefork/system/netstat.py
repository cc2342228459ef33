"""Read the kernel's counts of what happened to TCP in this network namespace (/proc/net/netstat, proc(5))."""

from __future__ import annotations

from pathlib import Path


def listen_overflows() -> int | None:
    """Return how often the queue of a listening socket was full since the namespace began (TcpExtListenOverflows).

    Return None if the kernel does not tell.
    """
    try:
        lines = Path("/proc/self/net/netstat").read_text().splitlines()
    except OSError:
        return None
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            found = dict(zip(names.split(), values.split(), strict=False)).get("ListenOverflows", "")
            return int(found) if found.isdecimal() else None
    return None
