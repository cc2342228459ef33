"""Ask the kernel for its sockets by netlink (sock_diag(7)): connections, listeners and their accept queues.

No privilege is needed. It sees the sockets of this process's network namespace only. The messages are in
`core/sock_diag.py`; which process has a socket is in /proc/PID/fd.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable

from ..core import sock_diag
from ..core.sock_diag import TCPSocket, UnixSocket, parse_answer
from .tcp_info import tcp_accept_queue

_SOCK_DIAG = 4
#: Bytes of one datagram of an answer: the kernel fills up to 32 KiB.
_DATAGRAM = 65536
#: Maximum number of sockets of one answer. The rest is left out, which `Found.complete` tells.
MAX_SOCKETS = 250_000


class Found:
    """The sockets of one answer."""

    __slots__ = ("complete", "sockets")

    def __init__(self) -> None:
        self.sockets: list[TCPSocket | UnixSocket] = []
        self.complete = False
        """False: the kernel did not say, or not all: the time was over, it refused, or there were too many."""


def find_connections(endpoints: Iterable[tuple[int, int]], seconds: float) -> tuple[list[TCPSocket], bool]:
    """Return the connections of local TCP ports, and whether these are all. Wait `seconds` at the most; raise nothing.

    `endpoints` are pairs of INET or INET6 and a port. Each costs the kernel a walk through all connections of the
    machine: 4 ms. A connection in an accept queue is not one of them: it belongs to no process yet.
    """
    requests = [sock_diag.ask_for_connections(family, port) for family, port in set(endpoints)]
    found = _ask(requests, seconds)
    tcp = [each for each in found.sockets if isinstance(each, TCPSocket) and each.inode]
    return tcp, found.complete


def find_listeners(ports: Iterable[int], seconds: float) -> list[TCPSocket]:
    """Return the listeners of local TCP ports, as far as the kernel tells within `seconds`; raise nothing."""
    requests = [sock_diag.ask_for_listeners(family, port) for family in _FAMILIES for port in set(ports)]
    return [each for each in _ask(requests, seconds).sockets if isinstance(each, TCPSocket)]


def accept_queue(listener: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait in the accept queue of a listener, and its limit; None if it does not tell.

    It never waits: one system call for TCP, and three for a unix socket.
    """
    if listener.family != socket.AF_UNIX:
        return tcp_accept_queue(listener)
    found = _find_unix_socket(listener)
    return (found.receive_queue, found.send_queue) if found is not None and found.listens else None


def file_inode(sock: socket.socket) -> int | None:
    """Return the last 32 bits of the inode number of the file that a unix socket is bound to. It never waits.

    None if it has none, or if the kernel cannot be asked: no such module, a sandbox, another system. The kernel also
    says the device, but stat(2) gives another one on btrfs and overlayfs. Within one directory the number is enough.
    """
    found = _find_unix_socket(sock)
    return None if found is None else found.file_inode


def _find_unix_socket(sock: socket.socket) -> UnixSocket | None:
    try:
        request = sock_diag.ask_for_unix_socket(os.fstat(sock.fileno()).st_ino)
    except OSError:
        return None
    # The answer is there once the request is sent (netlink(7)).
    return next((each for each in _ask([request], 0.0).sockets if isinstance(each, UnixSocket)), None)


def find_unix_sockets(seconds: float) -> tuple[list[UnixSocket], bool]:
    """Return the unix sockets that listen or are connected, and whether these are all; raise nothing.

    The kernel can only be asked for those of the whole machine.
    """
    found = _ask([sock_diag.ask_for_unix_sockets()], seconds)
    return [each for each in found.sockets if isinstance(each, UnixSocket)], found.complete


_FAMILIES = (sock_diag.INET, sock_diag.INET6)


def _ask(requests: Iterable[bytes], seconds: float) -> Found:
    found = Found()
    until = time.monotonic() + seconds
    try:
        with socket.socket(getattr(socket, "AF_NETLINK", -1), socket.SOCK_RAW, _SOCK_DIAG) as sock:
            found.complete = all(_ask_one(sock, request, until, found) for request in requests)
    except (OSError, ValueError):
        # No such module in the kernel, a sandbox, another system, or no answer in time.
        found.complete = False
    return found


def _ask_one(sock: socket.socket, request: bytes, until: float, found: Found) -> bool:
    sock.sendto(request, (0, 0))
    # The answer to a request for one socket, or the first part of a longer one, is there already (netlink(7)).
    sock.settimeout(0)
    while True:
        if parse_answer(sock.recv(_DATAGRAM), found.sockets):
            return True
        if len(found.sockets) >= MAX_SOCKETS or time.monotonic() > until:
            return False


def socket_inodes(pid: int) -> dict[int, int]:
    """Return the inodes of the sockets that a process has, with a descriptor of each. Raises OSError if it may not be
    seen, or is gone."""
    inodes: dict[int, int] = {}
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        # It may have closed that one meanwhile.
        with contextlib.suppress(OSError, ValueError):
            target = os.readlink(f"{directory}/{name}")
            if target.startswith("socket:["):
                inodes[int(target[8:-1])] = int(name)
    return inodes
