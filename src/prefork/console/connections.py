"""The connections of a running server, as its workers and the kernel tell them.

Asks both; `joining.py` makes the table of the answers.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection
from dataclasses import dataclass

from ..core.console_protocol import ConsoleRequest
from ..system import sock_diag
from ..system.descendants import children_of
from ..system.processes import slot_in_title
from .joining import Listeners, Row, Socket, join
from .servers import Attachment, WorkerLink

#: Seconds that the kernel has. It needs 8 us for a connection.
KERNEL_TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Connections:
    """The connections of a server at one moment."""

    rows: list[Row]
    complete: bool
    """The kernel has told of all its sockets: of rows without it only their worker tells."""
    stale: list[int]
    """The slots of workers that did not answer."""
    unclaimed: int
    """TCP connections of the server's ports that no worker has: on their way between two, or a child's."""


def read_connections(attachment: Attachment) -> Connections:
    """Return all connections of the server. Workers that are busy have 80 ms to begin their answer."""
    listeners = Listeners(attachment.listeners)
    kernel = _Kernel()
    answers = attachment.ask(ConsoleRequest("connections"), meanwhile=lambda: kernel.ask(listeners))
    told = {worker: answer.rows for worker, answer in answers.items() if answer.is_whole}
    others = [worker for worker in attachment.workers if worker not in told] + _old_workers(attachment.predecessor)
    # Once for each process: a hostile worker can claim the sockets of its siblings any number of times.
    inodes = functools.cache(_inodes)
    open_sockets = {each: inodes(each.pid) for each in others}
    rows, unclaimed = join(told, open_sockets, kernel.sockets, listeners, lambda pid, inode: inode in inodes(pid))
    stale = sorted({each.slot for each in others if each.is_asked})
    return Connections(rows, kernel.complete, stale, unclaimed)


def _old_workers(predecessor: int | None) -> list[WorkerLink]:
    """Return the workers of a supervisor that drains since an upgrade. Nothing but the kernel can be asked of them."""
    pids = [] if predecessor is None else children_of(predecessor)
    return [WorkerLink(slot_in_title(pid), pid, -1, "draining", False, None) for pid in pids]


class _Kernel:
    """What the kernel says of the sockets of a server."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.complete = True

    def ask(self, listeners: Listeners) -> None:
        if endpoints := listeners.endpoints:
            tcp, self.complete = sock_diag.find_connections(endpoints, KERNEL_TIMEOUT)
            self.sockets += tcp
        if listeners.unix:
            unix, complete = sock_diag.find_unix_sockets(KERNEL_TIMEOUT)
            self.sockets += unix
            self.complete = self.complete and complete


def _inodes(pid: int) -> Collection[int]:
    # It may be gone by now, or belong to another user.
    with contextlib.suppress(OSError):
        return sock_diag.socket_inodes(pid)
    return ()
