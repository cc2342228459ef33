"""Listening sockets that a parent or systemd has bound and passed on (sd_listen_fds(3)).

Their options stay as they are, except for the flags that prefork needs.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import socket

from ..errors import BindError

#: The first descriptor that systemd passes (SD_LISTEN_FDS_START).
_FIRST = 3


class SystemdSockets:
    """The sockets that systemd has passed to this process.

    Removes systemd's variables from the environment, otherwise children and their commands would use the descriptors.
    """

    def __init__(self) -> None:
        pid, count, names, _ = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID"))
        self._sockets: list[tuple[str, int]] = []
        if pid == str(os.getpid()) and re.fullmatch("[0-9]{1,9}", count):
            labels = names.split(":") if names else []
            # At most what a process can have open, because the number comes from outside.
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            for position in range(min(int(count), limit if limit > 0 else 2**20)):
                name = labels[position] if position < len(labels) else "unknown"
                try:
                    # Also those that no --bind names, otherwise programs that a service starts would inherit them.
                    os.set_inheritable(_FIRST + position, False)
                except OSError:
                    break
                self._sockets.append((name, _FIRST + position))

    def claim(self, name: str | None) -> list[socket.socket]:
        """Return the listening sockets named `name` (FileDescriptorName=), or all. Raises BindError if none is."""
        text = "systemd" if name is None else f"systemd:{name}"
        if not self._sockets:
            raise BindError(text, errno.ENOENT, "no sockets were passed to this process; start it by a .socket unit")
        found = [fd for label, fd in self._sockets if name is None or label == name]
        if not found:
            known = ", ".join(sorted({label for label, _ in self._sockets}))
            raise BindError(text, errno.ENOENT, f"no socket with that name was passed; there are: {known}")
        return [from_fd(fd, text) for fd in found]


def from_fd(fd: int, text: str = "") -> socket.socket:
    """Return the listening socket `fd`, made close-on-exec and non-blocking. The caller owns it.

    Raises BindError if it is not a listening stream socket.
    """
    sock = _duplicate(fd, text or f"fd:{fd}")
    # The duplicate is close-on-exec and owned by `sock`. The number that was passed is not needed any more.
    os.close(fd)
    sock.setblocking(False)
    return sock


def require_listening(fd: int) -> None:
    """Raise BindError if `fd` is not a listening stream socket. It stays as it is."""
    _duplicate(fd, f"fd:{fd}").close()


def _duplicate(fd: int, text: str) -> socket.socket:
    duplicate = -1
    try:
        duplicate = os.dup(fd)
        sock = socket.socket(fileno=duplicate)
    except OSError as exc:
        if duplicate >= 0:
            os.close(duplicate)
        cure = "it is not open; the parent has to pass it on" if exc.errno == errno.EBADF else "it is not a socket"
        raise BindError(text, exc.errno or 0, cure) from exc
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise BindError(text, errno.EINVAL, "it is not a listening stream socket")
    return sock
