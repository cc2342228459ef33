"""Read, compare and repair the options that a worker can change on a listening socket that it shares.

The kernel keeps options on the socket, not in a process. What one worker sets affects all, outlives it, and each
accepted connection inherits it. The table lists every option that can silence a port or damage connections. It omits
those that workers set themselves (`net/listener_options.py`). The numbers are Linux's; on other systems
only the status flags are checked. `listeners.py` knows which sockets there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

Value = int | bytes
#: The value of each setting, by name. A setting that this kernel or this kind of socket does not have is missing.
Snapshot = Mapping[str, Value]


# Each class below is a kind of setting, with its `name` in the manual pages. Its `read` and `write` raise OSError if a
# socket has no such setting. Read again to see whether `write` worked.


@dataclass(frozen=True, slots=True)
class Option:
    """A socket option of `size` bytes, written back as it was read."""

    name: str
    level: int
    number: int
    size: int = 4

    def read(self, sock: socket.socket) -> Value:
        return sock.getsockopt(self.level, self.number, self.size)

    def write(self, sock: socket.socket, value: Value) -> None:
        sock.setsockopt(self.level, self.number, value)


class BufferSize(Option):
    """SO_RCVBUF or SO_SNDBUF: the kernel doubles the value that is set (socket(7))."""

    __slots__ = ()

    def write(self, sock: socket.socket, value: Value) -> None:
        assert isinstance(value, bytes)
        sock.setsockopt(self.level, self.number, int.from_bytes(value, sys.byteorder) // 2)


class SegmentSize(Option):
    """TCP_MAXSEG: if it was never set the kernel reports the default, which must not be set explicitly."""

    __slots__ = ()

    def write(self, sock: socket.socket, value: Value) -> None:
        sock.setsockopt(self.level, self.number, 0)
        if self.read(sock) != value:
            sock.setsockopt(self.level, self.number, value)


@dataclass(frozen=True, slots=True)
class StatusFlag:
    """A flag of the open file description (fcntl(2), F_SETFL)."""

    name: str
    bit: int

    def read(self, sock: socket.socket) -> Value:
        return fcntl.fcntl(sock, fcntl.F_GETFL) & self.bit

    def write(self, sock: socket.socket, value: Value) -> None:
        assert isinstance(value, int)
        fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) & ~self.bit | value)


class Filter:
    """A classic or extended BPF filter (SO_ATTACH_FILTER, SO_ATTACH_BPF): 0 is none."""

    name = "SO_ATTACH_FILTER"

    def read(self, sock: socket.socket) -> Value:
        # With a length of 0 the kernel only returns the number of instructions. Not Python's getsockopt: it passes a
        # length in bytes, and the kernel would write eight bytes for each.
        length = ctypes.c_uint(0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_GET_FILTER, None, ctypes.byref(length)) < 0:
            code = ctypes.get_errno()
            if code != _EACCES:
                raise OSError(code, os.strerror(code))
            # There is an extended BPF filter, which cannot be read.
            return -1
        return length.value

    def write(self, sock: socket.socket, value: Value) -> None:
        if value == 0:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


class QueueLength:
    """The max. length of a TCP listener's accept queue (struct tcp_info, sacked), which listen(2) sets."""

    name = "backlog"

    def read(self, sock: socket.socket) -> Value:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SACKED_AT + 4)
        return int.from_bytes(info[_SACKED_AT:], sys.byteorder)

    def write(self, sock: socket.socket, value: Value) -> None:
        assert isinstance(value, int)
        sock.listen(value)


class UnixShutdown:
    """The shutdown state of a unix socket: it refuses connections, and listen(2) does not undo it."""

    name = "shutdown"

    def read(self, sock: socket.socket) -> Value:
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return sum(event for _, event in poll.poll(0))

    def write(self, sock: socket.socket, value: Value) -> None:
        """Do nothing, because a shutdown cannot be undone."""


Setting = Option | StatusFlag | Filter | QueueLength | UnixShutdown

_EACCES = 13
_SO_GET_FILTER, _SO_DETACH_FILTER, _SO_DETACH_REUSEPORT_BPF = 26, 27, 68
_TCP_INFO, _SACKED_AT = 11, 28
_SOCKET, _TCP, _IP, _IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6

_FLAGS: tuple[Setting, ...] = (
    StatusFlag("O_NONBLOCK", os.O_NONBLOCK),
    StatusFlag("O_ASYNC", getattr(os, "O_ASYNC", 0)),
)
_ALL: tuple[Setting, ...] = (
    Filter(),
    Option("SO_LOCK_FILTER", _SOCKET, 44),
    Option("SO_BINDTODEVICE", _SOCKET, 25, 16),
    BufferSize("SO_RCVBUF", _SOCKET, 8),
    BufferSize("SO_SNDBUF", _SOCKET, 7),
    # Setting a buffer size sets this lock too. While it is set the kernel does not tune the buffers of connections.
    Option("SO_BUF_LOCK", _SOCKET, 72),
    Option("SO_RCVLOWAT", _SOCKET, 18),
    Option("SO_RCVTIMEO", _SOCKET, 20, struct.calcsize("ll")),
    Option("SO_SNDTIMEO", _SOCKET, 21, struct.calcsize("ll")),
    Option("SO_LINGER", _SOCKET, 13, 8),
    Option("SO_MARK", _SOCKET, 36),
    Option("SO_PRIORITY", _SOCKET, 12),
    Option("SO_DONTROUTE", _SOCKET, 5),
    Option("SO_OOBINLINE", _SOCKET, 10),
    Option("SO_BUSY_POLL", _SOCKET, 46),
    Option("SO_MAX_PACING_RATE", _SOCKET, 47, 8),
    Option("SO_REUSEADDR", _SOCKET, 2),
)
_UNIX: tuple[Setting, ...] = (Option("SO_PASSCRED", _SOCKET, 16), UnixShutdown())
_INTERNET: tuple[Setting, ...] = (
    QueueLength(),
    Option("SO_REUSEPORT", _SOCKET, 15),
    SegmentSize("TCP_MAXSEG", _TCP, 2),
    Option("TCP_CORK", _TCP, 3),
    Option("TCP_SYNCNT", _TCP, 7),
    Option("TCP_LINGER2", _TCP, 8),
    Option("TCP_DEFER_ACCEPT", _TCP, 9),
    Option("TCP_WINDOW_CLAMP", _TCP, 10),
    Option("TCP_CONGESTION", _TCP, 13, 16),
    Option("TCP_FASTOPEN", _TCP, 23),
    Option("TCP_NOTSENT_LOWAT", _TCP, 25),
    Option("TCP_TX_DELAY", _TCP, 37),
)
_IPV4_ONLY: tuple[Setting, ...] = (
    Option("IP_MINTTL", _IP, 21),
    Option("IP_TTL", _IP, 2),
    Option("IP_TOS", _IP, 1),
    Option("IP_MTU_DISCOVER", _IP, 10),
    Option("IP_RECVERR", _IP, 11),
    Option("IP_UNICAST_IF", _IP, 50),
)
_IPV6_ONLY: tuple[Setting, ...] = (
    Option("IPV6_MINHOPCOUNT", _IPV6, 73),
    Option("IPV6_UNICAST_HOPS", _IPV6, 16),
    Option("IPV6_TCLASS", _IPV6, 67),
    Option("IPV6_MTU_DISCOVER", _IPV6, 23),
    Option("IPV6_RECVERR", _IPV6, 25),
    Option("IPV6_DONTFRAG", _IPV6, 62),
    Option("IPV6_UNICAST_IF", _IPV6, 76),
)


#: What no program sets on a listening socket: it stops the siblings from accepting, or blocks them in accept(2).
NEVER_OF_A_PROGRAM = frozenset({"O_NONBLOCK", "SO_ATTACH_FILTER", "SO_LOCK_FILTER", "shutdown"})


def settings(family: int) -> Iterator[Setting]:
    """Yield the settings of a socket of this family, in the order in which `repair_settings` writes them."""
    yield from _FLAGS
    if sys.platform != "linux":
        return
    yield from _ALL
    if family == socket.AF_UNIX:
        yield from _UNIX
    elif family in (socket.AF_INET, socket.AF_INET6):
        yield from _INTERNET
        yield from _IPV4_ONLY if family == socket.AF_INET else _IPV6_ONLY


def snapshot(sock: socket.socket, names: Container[str] | None = None) -> Snapshot:
    """Read all settings of the socket, or those in `names`."""
    found: dict[str, Value] = {}
    for setting in settings(sock.family):
        # An option that this kernel does not know cannot have been set by a worker.
        with contextlib.suppress(OSError):
            if names is None or setting.name in names:
                found[setting.name] = setting.read(sock)
    return found


def changed(wanted: Snapshot, found: Snapshot) -> tuple[str, ...]:
    return tuple(name for name, value in wanted.items() if found.get(name) != value)


def repair_settings(sock: socket.socket, wanted: Snapshot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Set changed settings back. Return the names of those that were changed, and of those that still differ."""
    wrong = changed(wanted, snapshot(sock))
    if not wrong:
        return (), ()
    for setting in settings(sock.family):
        with contextlib.suppress(OSError):
            # Read each one again, because writing an earlier setting may have changed it.
            if setting.name in wanted and setting.read(sock) != wanted[setting.name]:
                setting.write(sock, wanted[setting.name])
    return wrong, changed(wanted, snapshot(sock))


def detach_program(sock: socket.socket) -> bool:
    """Detach a BPF program that chooses among the sockets of a port (SO_ATTACH_REUSEPORT_CBPF, _EBPF).

    Return whether there was one. Detaching is the only way to find out.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
        return True
    return False
