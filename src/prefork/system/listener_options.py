"""What a worker can set on a listening socket that it shares: read, compared with what it should be, and set back.

The kernel keeps options on the socket, not in a process: what one worker sets holds for all, outlives it, and is
inherited by each accepted connection. The table has a row for each option that silences a port or spoils connections.
It leaves out those that workers set themselves (`net/server.py`, _set_tcp_options). Numbers are Linux's; elsewhere only
the status flags are looked at. Which sockets there are, and who is told, is decided elsewhere.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

Value = int | bytes
#: What each row of the table reads; a row that this kernel or this kind of socket does not have is not in it.
Snapshot = Mapping[str, Value]


class Row(Protocol):
    """One thing that can be set."""

    @property
    def name(self) -> str:
        """As the manual pages have it."""

    def read(self, sock: socket.socket) -> Value:
        """What it is. Raises OSError where there is no such thing."""

    def write(self, sock: socket.socket, value: Value) -> None:
        """Set it. Raises OSError; whether it has worked is found out by reading."""


@dataclass(frozen=True, slots=True)
class Option:
    """A socket option of `size` bytes, which is written as it was read."""

    name: str
    level: int
    number: int
    size: int = 4

    def read(self, sock: socket.socket) -> Value:
        return sock.getsockopt(self.level, self.number, self.size)

    def write(self, sock: socket.socket, value: Value) -> None:
        sock.setsockopt(self.level, self.number, value)


class BufferSize(Option):
    """SO_RCVBUF and SO_SNDBUF: the kernel doubles what it is given (socket(7))."""

    __slots__ = ()

    def write(self, sock: socket.socket, value: Value) -> None:
        assert isinstance(value, bytes)
        sock.setsockopt(self.level, self.number, int.from_bytes(value, sys.byteorder) // 2)


class SegmentSize(Option):
    """TCP_MAXSEG: of one that was not set, the kernel tells the default, which must not be set in its place."""

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


@dataclass(frozen=True, slots=True)
class Filter:
    """A classic or extended BPF filter (SO_ATTACH_FILTER, SO_ATTACH_BPF): 0 is none."""

    name: str = "SO_ATTACH_FILTER"

    def read(self, sock: socket.socket) -> Value:
        # With a length of 0 the kernel only tells how many instructions there are. Python's getsockopt gives a length
        # in bytes, and the kernel would write eight for each.
        length = ctypes.c_uint(0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, _SO_GET_FILTER, None, ctypes.byref(length)) < 0:
            code = ctypes.get_errno()
            if code != _EACCES:
                raise OSError(code, os.strerror(code))
            # One that cannot be read: extended BPF.
            return -1
        return length.value

    def write(self, sock: socket.socket, value: Value) -> None:
        if value == 0:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


@dataclass(frozen=True, slots=True)
class QueueLength:
    """The length of a TCP listener's queue (struct tcp_info, sacked), which listen(2) sets."""

    name: str = "backlog"

    def read(self, sock: socket.socket) -> Value:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SACKED_AT + 4)
        return int.from_bytes(info[_SACKED_AT:], sys.byteorder)

    def write(self, sock: socket.socket, value: Value) -> None:
        assert isinstance(value, int)
        sock.listen(value)


@dataclass(frozen=True, slots=True)
class UnixShutdown:
    """Of a unix socket, which listen(2) does not mend: connections are refused."""

    name: str = "shutdown"

    def read(self, sock: socket.socket) -> Value:
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        return sum(event for _, event in poll.poll(0))

    def write(self, sock: socket.socket, value: Value) -> None:
        """It cannot be."""


_EACCES = 13
_SO_GET_FILTER, _SO_DETACH_FILTER, _SO_DETACH_REUSEPORT_BPF = 26, 27, 68
_TCP_INFO, _SACKED_AT = 11, 28
_SOCKET, _TCP, _IP, _IPV6 = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.IPPROTO_IPV6

_FLAGS: tuple[Row, ...] = (
    StatusFlag("O_NONBLOCK", os.O_NONBLOCK),
    StatusFlag("O_ASYNC", getattr(os, "O_ASYNC", 0)),
)
_ALL: tuple[Row, ...] = (
    Filter(),
    Option("SO_LOCK_FILTER", _SOCKET, 44),
    Option("SO_BINDTODEVICE", _SOCKET, 25, 16),
    BufferSize("SO_RCVBUF", _SOCKET, 8),
    BufferSize("SO_SNDBUF", _SOCKET, 7),
    # Set by the two before: without it the kernel does not adapt the buffers of connections any more.
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
_UNIX: tuple[Row, ...] = (Option("SO_PASSCRED", _SOCKET, 16), UnixShutdown())
_INTERNET: tuple[Row, ...] = (
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
_IPV4: tuple[Row, ...] = (
    Option("IP_MINTTL", _IP, 21),
    Option("IP_TTL", _IP, 2),
    Option("IP_TOS", _IP, 1),
    Option("IP_MTU_DISCOVER", _IP, 10),
    Option("IP_RECVERR", _IP, 11),
    Option("IP_UNICAST_IF", _IP, 50),
)
_IPV6_ROWS: tuple[Row, ...] = (
    Option("IPV6_MINHOPCOUNT", _IPV6, 73),
    Option("IPV6_UNICAST_HOPS", _IPV6, 16),
    Option("IPV6_TCLASS", _IPV6, 67),
    Option("IPV6_MTU_DISCOVER", _IPV6, 23),
    Option("IPV6_RECVERR", _IPV6, 25),
    Option("IPV6_DONTFRAG", _IPV6, 62),
    Option("IPV6_UNICAST_IF", _IPV6, 76),
)


def rows(family: int) -> Iterator[Row]:
    """The table for a socket of this family, in the order in which values are set back."""
    yield from _FLAGS
    if sys.platform != "linux":
        return
    yield from _ALL
    if family == socket.AF_UNIX:
        yield from _UNIX
    elif family in (socket.AF_INET, socket.AF_INET6):
        yield from _INTERNET
        yield from _IPV4 if family == socket.AF_INET else _IPV6_ROWS


def take(sock: socket.socket) -> Snapshot:
    """What the socket is set to now."""
    found: dict[str, Value] = {}
    for row in rows(sock.family):
        # A kernel that does not know the option has no worker that has set it.
        with contextlib.suppress(OSError):
            found[row.name] = row.read(sock)
    return found


def take_queue_length(sock: socket.socket) -> Snapshot:
    """That row alone, after a listen(2) of our own."""
    return {row.name: row.read(sock) for row in rows(sock.family) if isinstance(row, QueueLength)}


def changed(wanted: Snapshot, found: Snapshot) -> tuple[str, ...]:
    """The names of what is not as it should be."""
    return tuple(name for name, value in wanted.items() if found.get(name) != value)


def mend(sock: socket.socket, wanted: Snapshot) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Set back what has been changed. The names of all that had been, and of what could not be set back."""
    wrong = changed(wanted, take(sock))
    if not wrong:
        return (), ()
    for row in rows(sock.family):
        with contextlib.suppress(OSError):
            # Read again: one that is set back may change another one further down.
            if row.name in wanted and row.read(sock) != wanted[row.name]:
                row.write(sock, wanted[row.name])
    return wrong, changed(wanted, take(sock))


def detach_program(sock: socket.socket) -> bool:
    """Take a program away that chooses among the sockets of a port (SO_ATTACH_REUSEPORT_CBPF, _EBPF); whether there was
    one: the kernel tells it in no other way."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
        return True
    return False
