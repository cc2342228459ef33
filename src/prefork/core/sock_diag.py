"""The messages of sock_diag(7): requests about TCP and unix sockets, and what the kernel answers.

Pure: bytes in and out. `system/sock_diag.py` sends and receives them.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .tcp_info import TCPInfo

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/unix_diag.h
_ERROR, _DONE, _BY_FAMILY = 2, 3, 20
_REQUEST, _DUMP = 0x1, 0x300
_TCP = 6
UNIX, INET, INET6 = 1, 2, 10
_ATTR_INFO, _ATTR_SKMEMINFO = 2, 7
_UNIX_ATTR_NAME, _UNIX_ATTR_FILE, _UNIX_ATTR_PEER, _UNIX_ATTR_QUEUE = 0, 1, 2, 4
_SHOW_NAME, _SHOW_FILE, _SHOW_PEER, _SHOW_QUEUE = 0x1, 0x2, 0x4, 0x10
_LISTEN = 10
#: All states of a connection that has, or may still get, a descriptor: not SYN_RECV, TIME_WAIT, CLOSE and LISTEN.
_CONNECTED = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
_UNIX_CONNECTED = 1 << 1
_HEADER = struct.Struct("=IHHII")
_INET_REQUEST = struct.Struct("=BBBBI")
_INET_MESSAGE = struct.Struct("=BBBB")
_PORTS = struct.Struct("!HH")
_INET_COUNTS = struct.Struct("=IIIII")
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
_UNIX_MESSAGE = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
_WORD = struct.Struct("=I")
#: Where the parts of struct inet_diag_msg are: the addresses, the cookie, then the counts.
_SOURCE_AT, _DESTINATION_AT, _COOKIE_AT, _COUNTS_AT, _INET_SIZE = 8, 24, 44, 52, 72
#: Of SKMEMINFO, struct sk_meminfo: the drops of packets.
_DROPS_AT = 8 * 4
_ANY = 2**32 - 1
#: What an IPv4 address begins with in a socket of IPv6 (RFC 4291, 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"


class TCPSocket(NamedTuple):
    """One TCP socket as the kernel describes it: a connection, or a listener with its accept queue."""

    inode: int
    """What /proc/PID/fd names it by; 0 while it waits in an accept queue, and once its descriptor is closed."""
    family: int
    local: tuple[bytes, int]
    """The address in network order, and the port."""
    remote: tuple[bytes, int]
    state: int
    listens: bool
    uid: int
    receive_queue: int
    """Bytes that the process has not read; of a listener, connections that wait to be accepted."""
    send_queue: int
    """Bytes that the peer has not acknowledged; of a listener, the limit of its accept queue."""
    cookie: bytes
    """Names this socket for as long as the machine runs."""
    info: bytes
    """struct tcp_info (`core/tcp_info.py`); b"" if the kernel gave none."""
    drops: int
    """Packets that were dropped, as for lack of memory."""

    def fact(self, field: TCPInfo) -> int | None:
        return field.of(self.info)


class UnixSocket(NamedTuple):
    """One unix socket as the kernel describes it."""

    inode: int
    listens: bool
    name: bytes
    """The path it is bound to, or after a NUL its abstract name; b"" for none."""
    peer_inode: int
    receive_queue: int
    """Bytes that wait; of a listener, connections that wait to be accepted."""
    send_queue: int
    """Bytes that the peer has not read; of a listener, the limit of its accept queue."""
    file_inode: int | None = None
    """Of the file that it is bound to, as far as 32 bits hold it; None if there is none."""


class KernelRefusedError(OSError):
    """Raised for an answer that is an error: `errno` says which."""


def ask_for_connections(family: int, port: int) -> bytes:
    """Return the request for all connections of a local TCP port, with struct tcp_info."""
    return _inet_request(family, port, _CONNECTED, 1 << _ATTR_INFO - 1 | 1 << _ATTR_SKMEMINFO - 1)


def ask_for_listeners(family: int, port: int) -> bytes:
    """Return the request for all listeners of a local TCP port, with the lengths of their accept queues."""
    return _inet_request(family, port, 1 << _LISTEN, 1 << _ATTR_SKMEMINFO - 1)


def _inet_request(family: int, port: int, states: int, attributes: int) -> bytes:
    # struct inet_diag_sockid, which is 48 bytes: ports, two addresses, interface, cookie.
    sockid = _PORTS.pack(port, 0) + bytes(36) + b"\xff" * 8
    return _request(_INET_REQUEST.pack(family, _TCP, attributes, 0, states) + sockid)


def ask_for_unix_sockets() -> bytes:
    """Return the request for all unix sockets that listen or are connected, with their names, peers and queues."""
    return _request(_unix_request(1 << _LISTEN | _UNIX_CONNECTED, 0))


def ask_for_unix_socket(inode: int) -> bytes:
    """Return the request for one unix socket: the inode is what fstat(2) says of its descriptor."""
    return _request(_unix_request(_ANY, inode & _ANY), dump=False)


def _unix_request(states: int, inode: int) -> bytes:
    show = _SHOW_NAME | _SHOW_FILE | _SHOW_PEER | _SHOW_QUEUE
    return _UNIX_REQUEST.pack(UNIX, 0, 0, states, inode, show, _ANY, _ANY)


def _request(content: bytes, dump: bool = True) -> bytes:
    return _HEADER.pack(_HEADER.size + len(content), _BY_FAMILY, _REQUEST | (_DUMP if dump else 0), 1, 0) + content


def parse_answer(data: bytes, sockets: list[TCPSocket | UnixSocket]) -> bool:
    """Add the sockets of one datagram of the answer. Return whether it is the last.

    Raises KernelRefusedError for an error, ValueError for what is no answer.
    """
    try:
        for kind, content in _messages(data):
            if kind == _DONE:
                return True
            if kind == _ERROR:
                code = -struct.unpack_from("=i", content)[0]
                raise KernelRefusedError(code, "the kernel refuses to describe its sockets")
            if kind == _BY_FAMILY and content:
                sockets.append(_parse_unix(content) if content[0] == UNIX else _parse_inet(content))
    except struct.error as exc:
        raise ValueError(f"not an answer of sock_diag: {exc}") from None
    return False


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            raise ValueError("not an answer of sock_diag: a message without a header")
        yield kind, data[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _parse_inet(content: bytes) -> TCPSocket:
    family, state, _, _ = _INET_MESSAGE.unpack_from(content)
    local_port, remote_port = _PORTS.unpack_from(content, 4)
    _, receive_queue, send_queue, uid, inode = _INET_COUNTS.unpack_from(content, _COUNTS_AT)
    size = 16 if family == INET6 else 4
    info, drops = b"", 0
    for kind, value in _attributes(content, _INET_SIZE):
        if kind == _ATTR_INFO:
            info = value
        elif kind == _ATTR_SKMEMINFO and len(value) >= _DROPS_AT + 4:
            drops = _WORD.unpack_from(value, _DROPS_AT)[0]
    return TCPSocket(
        inode,
        family,
        (content[_SOURCE_AT : _SOURCE_AT + size], local_port),
        (content[_DESTINATION_AT : _DESTINATION_AT + size], remote_port),
        state,
        state == _LISTEN,
        uid,
        receive_queue,
        send_queue,
        content[_COOKIE_AT:_COUNTS_AT],
        info,
        drops,
    )


def _parse_unix(content: bytes) -> UnixSocket:
    _, _, state, _, inode, _, _ = _UNIX_MESSAGE.unpack_from(content)
    name, peer, queues, file = b"", 0, (0, 0), None
    for kind, value in _attributes(content, _UNIX_MESSAGE.size):
        if kind == _UNIX_ATTR_NAME:
            name = value if value.startswith(b"\0") else value.rstrip(b"\0")
        elif kind == _UNIX_ATTR_PEER:
            (peer,) = _WORD.unpack_from(value)
        elif kind == _UNIX_ATTR_QUEUE:
            queues = struct.unpack_from("=II", value)
        elif kind == _UNIX_ATTR_FILE:
            (file,) = _WORD.unpack_from(value)
    return UnixSocket(inode, state == _LISTEN, name, peer, *queues, file)


def _attributes(content: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        if length < _ATTRIBUTE.size:
            raise ValueError("not an answer of sock_diag: an attribute without a header")
        yield kind, content[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def format_endpoint(endpoint: tuple[bytes, int]) -> str:
    """Return an address and its port as text. One of IPv4 is shown as such, also where the socket is of IPv6."""
    packed, port = endpoint
    if len(packed) == 16 and packed.startswith(_MAPPED):
        packed = packed[len(_MAPPED) :]
    if len(packed) == 4:
        return f"{'.'.join(map(str, packed))}:{port}"
    return f"[{ipaddress.IPv6Address(packed)}]:{port}"
