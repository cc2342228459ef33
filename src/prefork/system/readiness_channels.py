"""Where a program says that it is ready: a socket as of a service manager (sd_notify(3)), or a pipe.

Each is made before the fork, for one worker. What follows is decided in `core/readiness.py`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Protocol

from .descriptors import Descriptor

#: Datagrams that are read at once, and bytes of each, because any process of this machine may send some.
_MAX_MESSAGES = 16
_MAX_BYTES = 4096
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))


class ReadinessChannel(Protocol):
    """The supervisor's end: readable when something was said."""

    def fileno(self) -> int: ...
    def says_ready(self, pid: int) -> bool: ...
    def close(self) -> None: ...
    def enter_worker(self) -> tuple[int, ...]: ...


class NotifySocket:
    """A private NOTIFY_SOCKET of one worker. Raises OSError."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            # An abstract name that the kernel chooses (unix(7), autobind): it works for every user and has no file.
            self._sock.bind("")
        except OSError:
            self._sock.close()
            raise

    def fileno(self) -> int:
        return self._sock.fileno()

    def says_ready(self, pid: int) -> bool:
        """Return whether READY=1 came from the process `pid`, or from one of its process group."""
        for _ in range(_MAX_MESSAGES):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except OSError:
                return False
            if b"READY=1" in data.splitlines() and _is_of(pid, ancillary):
                return True
        return False

    def close(self) -> None:
        self._sock.close()

    def enter_worker(self) -> tuple[int, ...]:
        """In the worker: name the socket in the environment, and close this process's copy. Return the descriptors that
        are the program's now."""
        name = self._sock.getsockname()
        os.environ["NOTIFY_SOCKET"] = "@" + (name[1:].decode() if isinstance(name, bytes) else name[1:])
        self.close()
        return ()


class ReadyPipe:
    """A pipe whose writing end a program has as descriptor `number`. Raises OSError."""

    def __init__(self, number: int) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self._reader, self._writer, self._number = Descriptor(reader), Descriptor(writer), number

    def fileno(self) -> int:
        return self._reader.fileno()

    def says_ready(self, pid: int) -> bool:
        """Return whether a line was written."""
        try:
            return b"\n" in os.read(self._reader.fileno(), _MAX_BYTES)
        except OSError:
            return False

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def enter_worker(self) -> tuple[int, ...]:
        """In the worker: make the writing end the descriptor that was promised, and return that. The supervisor has
        kept it free."""
        os.dup2(self._writer.fileno(), self._number)
        self.close()
        return (self._number,)


def _is_of(pid: int, ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(content) >= _CREDENTIALS.size:
            sender = _CREDENTIALS.unpack_from(content)[0]
            if sender == pid:
                return True
            with contextlib.suppress(OSError):
                return sender > 0 and os.getpgid(sender) == pid
    return False
