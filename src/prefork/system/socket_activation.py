"""Listening sockets that somebody else has bound and passed on: by number, or by systemd's protocol (sd_listen_fds(3)).

They stay what they are; only flags that our own use needs are set.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
from collections.abc import MutableMapping

from ..errors import BindError

#: The first descriptor that systemd passes (SD_LISTEN_FDS_START).
_FIRST = 3


class SystemdSockets:
    """What systemd has passed to this process. Takes the variables out of the environment: children, and the commands
    that they start, would take the descriptors for theirs."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        pid, count, names, _ = (variables.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID"))
        self._sockets: list[tuple[str, int]] = []
        if pid == str(os.getpid()) and re.fullmatch("[0-9]{1,9}", count):
            labels = names.split(":") if names else []
            # No more than a process can have: the number comes from outside.
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            for position in range(min(int(count), most if most > 0 else 2**20)):
                name = labels[position] if position < len(labels) else "unknown"
                try:
                    # Also those that nobody asks for: what a service starts must not find them.
                    os.set_inheritable(_FIRST + position, False)
                except OSError:
                    break
                self._sockets.append((name, _FIRST + position))

    def take(self, name: str | None) -> list[socket.socket]:
        """The listening sockets of that name (FileDescriptorName=), or all. Raises BindError if there is none."""
        text = "systemd" if name is None else f"systemd:{name}"
        if not self._sockets:
            raise BindError(text, errno.ENOENT, "no sockets were passed to this process; start it by a .socket unit")
        found = [fd for label, fd in self._sockets if name is None or label == name]
        if not found:
            known = ", ".join(sorted({label for label, _ in self._sockets}))
            raise BindError(text, errno.ENOENT, f"no socket of that name was passed; there are: {known}")
        return [adopt(fd, text) for fd in found]


def adopt(fd: int, text: str = "") -> socket.socket:
    """The listening socket with this number, made close-on-exec and non-blocking. The caller owns it.

    Raises BindError for a descriptor that is no listening stream socket.
    """
    text = text or f"fd:{fd}"
    duplicate = -1
    try:
        duplicate = os.dup(fd)
        sock = socket.socket(fileno=duplicate)
    except OSError as exc:
        if duplicate >= 0:
            os.close(duplicate)
        cure = "it is not open; the parent has to pass it on" if exc.errno == errno.EBADF else "it is no socket"
        raise BindError(text, exc.errno or 0, cure) from exc
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise BindError(text, errno.EINVAL, "it is no listening stream socket")
    # The duplicate is ours, and close-on-exec; the number that we were given is not needed any more.
    os.close(fd)
    sock.setblocking(False)
    return sock
