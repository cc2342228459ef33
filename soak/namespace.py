"""A network namespace of the harness: no other program moves its counters or uses its ports.

Enters by running the same command again under unshare(1); there is no way back. The limits of the kernel that would
measure the machine instead of the server are raised inside.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

#: Set in the command that runs inside, to the inode of the namespace that it was started from.
_INSIDE = "SOAK_OUTSIDE_WAS"
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
#: Those that do not exist, or not in this namespace, are left alone.
_SYSCTLS = {
    "net/core/somaxconn": "65535",
    "net/ipv4/tcp_max_syn_backlog": "65535",
    "net/ipv4/ip_local_port_range": "10000\t65000",
    "net/ipv4/tcp_max_tw_buckets": "1000000",
    # Off is the default. It would hide what the control run has to show.
    "net/ipv4/tcp_migrate_req": "0",
    # A SYN cookie would hide a full queue.
    "net/ipv4/tcp_syncookies": "0",
}


class NoNamespace(Exception):
    """There can be none here; the text says why, and what to do."""


def inside() -> bool:
    """Whether this process is in a namespace that `enter` has made."""
    outside = os.environ.get(_INSIDE)
    return outside is not None and outside != _inode()


def enter(arguments: Sequence[str], module: str = "soak") -> NoReturn:
    """Become `python -m MODULE ARGUMENTS` in a network namespace of its own. Raises NoNamespace."""
    if shutil.which("unshare") is None:
        raise NoNamespace("unshare(1) is not installed; it is part of util-linux")
    options = ["-n"] if os.geteuid() == 0 else ["-rn"]
    probe = subprocess.run(["unshare", *options, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise NoNamespace(
            f"unshare {' '.join(options)} says: {probe.stderr.strip() or probe.returncode}; "
            "run it as root, or allow user namespaces (kernel.unprivileged_userns_clone, or your container's policy)"
        )
    os.environ[_INSIDE] = _inode()
    os.execvp("unshare", ["unshare", *options, sys.executable, "-m", module, *arguments])


def furnish() -> list[str]:
    """Bring loopback up and raise the limits; what could not be raised. Call it inside."""
    _bring_up("lo")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept = []
    for name, value in _SYSCTLS.items():
        try:
            Path("/proc/sys", name).write_text(value)
        except OSError as exc:
            kept.append(f"{name.replace('/', '.')}: {os.strerror(exc.errno or 0).lower()}")
    return kept


def _bring_up(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ask = struct.pack("16sh14x", interface.encode(), 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, ask))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | _IFF_UP))


def _inode() -> str:
    return str(os.stat("/proc/self/ns/net").st_ino)
