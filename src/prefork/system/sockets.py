"""Listening sockets: binding them, all or nothing, and saying in words what they are.

No asyncio, and nothing about who accepts.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import socket
import sys
from typing import Any

from ..errors import BindError

#: How often a free port that is taken on the second address is given up for another.
PORT_ATTEMPTS = 20
_CURES = {
    errno.EACCES: "ports below 1024 need root, CAP_NET_BIND_SERVICE or socket activation",
    errno.EADDRINUSE: "another process listens there; find it with: ss -ltnp",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


def bind_sockets(
    port: int | None,
    address: str | None = None,
    family: int = socket.AF_UNSPEC,
    backlog: int = 128,
    flags: int | None = None,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Listening, non-blocking, close-on-exec TCP sockets for `port`, one per address that `address` resolves to.

    `address`: None or "" is all interfaces; a host name is all of its addresses. `family` restricts to AF_INET or
    AF_INET6. `port` 0 or None: one free port, the same for every address. `flags`: a bitmask of AI_* for getaddrinfo,
    by default AI_PASSIVE. `reuse_port`: SO_REUSEPORT, ValueError where the platform has none.

    A family that the kernel does not support is skipped, and so is IPv6 where this machine has no address of it, as
    long as another address is left and the host asked for is all interfaces or localhost. IPv6 sockets take IPv6 alone
    (IPV6_V6ONLY), so that both families can have the port.

    All or nothing: raises BindError, which names the address, and nothing is bound then; socket.gaierror where a name
    does not resolve. The caller owns the sockets.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("the platform doesn't support SO_REUSEPORT")
    return _bind_sockets(port, address, family, backlog, flags, _Sharing.OPEN if reuse_port else _Sharing.NONE)


def bind_shared_port(port: int, address: str | None, backlog: int) -> list[socket.socket]:
    """`bind_sockets` for a port that `add_lane` can be called for, but that no stranger's socket shares: a second
    server of this user's on the same port would silently be given a part of the connections. Raises as it does."""
    return _bind_sockets(port, address, socket.AF_UNSPEC, backlog, None, _Sharing.CLAIMED)


def add_lane(sock: socket.socket, backlog: int) -> socket.socket:
    """One more listening socket for the address of `sock`: the kernel gives each its part of the connections
    (SO_REUSEPORT, socket(7)). Raises BindError."""
    where = sock.getsockname()
    lane = None
    try:
        lane = socket.socket(sock.family, socket.SOCK_STREAM)
        _listen(lane, where, backlog, _Sharing.OPEN)
    except OSError as exc:
        if lane is not None:
            lane.close()
        raise _bind_error(where, exc) from exc
    return lane


def bind_beside(sock: socket.socket, where: Any, backlog: int) -> socket.socket:
    """A fresh listening socket for `where`, the address of `sock`, which listens still and cannot be mended. Until that
    one is closed everywhere each of the two may get a connection. Raises BindError."""
    fresh = None
    try:
        shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        fresh = socket.socket(sock.family, socket.SOCK_STREAM)
        _listen(fresh, where, backlog, _Sharing.OPEN)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    except OSError as exc:
        if fresh is not None:
            fresh.close()
        raise _bind_error(where, exc) from exc
    return fresh


class _Sharing(enum.Enum):
    """Who else may have a socket on the same port."""

    NONE = enum.auto()
    OPEN = enum.auto()
    """Every socket of this user with SO_REUSEPORT."""
    CLAIMED = enum.auto()
    """The same, but nobody has one now."""


def _bind_sockets(
    port: int | None, address: str | None, family: int, backlog: int, flags: int | None, sharing: _Sharing
) -> list[socket.socket]:
    if address == "":
        address = None
    if address is None and family == socket.AF_UNSPEC and not socket.has_ipv6:
        # Python can be built without IPv6 on a system whose resolver still gives such addresses.
        family = socket.AF_INET
    addresses = _resolve(port or 0, address, family, socket.AI_PASSIVE if flags is None else flags)
    optional = address is None or address == "localhost"
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _bind_all(addresses, port or 0, backlog, sharing, optional)
        except BindError as exc:
            # A free port on the first address may be taken on the second: try another one.
            if port or exc.errno != errno.EADDRINUSE or attempt == PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


_NUMERIC = frozenset("0123456789abcdefABCDEF.:")
_Resolved = tuple[int, tuple[str | int | bytes, ...]]


def _resolve(port: int, address: str | None, family: int, flags: int) -> list[_Resolved]:
    found: list[_Resolved] = []
    # A numeric address as bytes: for text, Python imports the codec of international names, and its tables.
    host = address.encode() if address and _NUMERIC.issuperset(address) else address
    for af, _, _, _, where in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags):
        if sys.platform == "darwin" and address == "localhost" and af == socket.AF_INET6 and where[3] != 0:
            # macOS gives localhost a link-local address with a scope as well (fe80::1%lo0), which cannot be bound.
            continue
        if (af, where) not in found:
            found.append((af, where))
    # IPv4 first: a free port is chosen on the first address, and IPv4 is the one that is always there.
    return sorted(found, key=lambda each: each[0] != socket.AF_INET)


def _bind_all(
    addresses: list[_Resolved], port: int, backlog: int, sharing: _Sharing, optional: bool
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    skipped: BindError | None = None
    with contextlib.ExitStack() as undo:
        for af, resolved in addresses:
            where = (resolved[0], port, *resolved[2:])
            try:
                sock = socket.socket(af, socket.SOCK_STREAM)
            except OSError as exc:
                if exc.errno == errno.EAFNOSUPPORT:
                    skipped = _bind_error(where, exc)
                    continue
                raise _bind_error(where, exc) from exc
            undo.callback(sock.close)
            try:
                _listen(sock, where, backlog, sharing)
            except OSError as exc:
                failure = _bind_error(where, exc)
                if exc.errno == errno.EADDRNOTAVAIL and af == socket.AF_INET6 and optional:
                    # IPv6 is compiled in but switched off, or this host has no such address.
                    skipped = failure
                    sock.close()
                    continue
                raise failure from exc
            port = port or sock.getsockname()[1]
            sockets.append(sock)
        if not sockets and skipped is not None:
            raise skipped
        undo.pop_all()
    return sockets


def _listen(sock: socket.socket, where: tuple[str | int | bytes, ...], backlog: int, sharing: _Sharing) -> None:
    if os.name != "nt":
        # There it would let two servers have one port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sharing is _Sharing.OPEN:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setblocking(False)
    sock.bind(where)
    if sharing is _Sharing.CLAIMED:
        # Only now: the bind has failed if somebody else has the port, with SO_REUSEPORT or without.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.listen(backlog)


def _bind_error(where: tuple[str | int | bytes, ...], exc: OSError) -> BindError:
    host, port = str(where[0]), str(where[1])
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return BindError(text, exc.errno or 0, _CURES.get(exc.errno or 0, ""))


def relisten(sock: socket.socket, address: Any, backlog: int) -> bool:
    """Mend a listening socket that somebody who shares it has shut down; whether that was so, and is so no more.

    It is bound still, but for a port that the kernel had chosen: `address` is what its getsockname() was before.
    """
    with contextlib.suppress(OSError):
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # Linux gives such a port back in tcp_set_state(), and getsockname() tells it all the same.
            with contextlib.suppress(OSError):
                sock.bind(address)
            sock.listen(backlog)
            return True
    return False


def describe(sock: socket.socket) -> str:
    """A listening socket in words: `127.0.0.1:9000`, `[::1]:9000`, `unix:/run/x.sock`."""
    try:
        name = sock.getsockname()
    except OSError:
        return f"descriptor {sock.fileno()}"
    if sock.family == getattr(socket, "AF_UNIX", None):
        return f"unix:{os.fsdecode(name)}"
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
