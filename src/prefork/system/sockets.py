"""Listening TCP sockets: resolve an address, bind all of it or nothing, and describe a socket in a log line.

No asyncio, and nothing about accepting. See unix_sockets.py for the other family.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checks import check_int
from ..errors import BindError, reason_of
from ..text import format_address
from .listen_options import ListenOptions, Sharing

#: Attempts to find one free port on all addresses: one that is free on the first may be in use on the second.
MAX_PORT_ATTEMPTS = 20
_NUMERIC = frozenset("0123456789abcdefABCDEF.:")
_SockAddr = tuple[str | int | bytes, ...]
_CURES = {
    errno.EACCES: "ports below 1024 need root, CAP_NET_BIND_SERVICE or socket activation",
    errno.EADDRINUSE: "another process listens there; find it with: ss -ltnp",
    errno.EADDRNOTAVAIL: "no interface of this machine has that address",
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """The socket addresses that a port and a host stand for, as getaddrinfo(3) gave them."""

    port: int
    addresses: Sequence[tuple[int, _SockAddr]]
    """(family, address), IPv4 first: a free port is chosen on the first, and IPv4 exists on every machine."""
    optional_ipv6: bool
    """Skip an IPv6 address that this machine does not have. Only for all interfaces and localhost: a host that was
    asked for by its own name or number must not be left out silently."""


def bind_sockets(
    port: int | None,
    address: str | None = None,
    family: int = socket.AF_UNSPEC,
    backlog: int = 128,
    flags: int | None = None,
    reuse_port: bool = False,
) -> list[socket.socket]:
    """Return listening, non-blocking, close-on-exec TCP sockets for `port`, one per address that `address` resolves to.

    `address`: None or "" is all interfaces; a host name is all of its addresses, and looking it up blocks. `family`
    restricts to AF_INET or AF_INET6. `port` 0 or None: one free port, the same for every address. `flags`: a bitmask of
    AI_* for getaddrinfo(3), by default AI_PASSIVE. `reuse_port`: set SO_REUSEPORT.

    IPv6 sockets accept IPv6 only (IPV6_V6ONLY), so that both families can have the port. A family that the kernel does
    not support is skipped. So is IPv6 when this machine has no such address, if another address is left and `address`
    is all interfaces or localhost. A Python without IPv6 (`socket.has_ipv6`) binds IPv4 only.

    Raises BindError, which names the address, with nothing bound. Raises socket.gaierror for a name that does not
    resolve. Raises ValueError for a port that is no number from 0 to 65535, and for `reuse_port` where the platform has
    none. The caller owns the sockets.
    """
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("the platform doesn't support SO_REUSEPORT")
    sharing = Sharing.OPEN if reuse_port else Sharing.NONE
    return bind_resolved(resolve(port, address, family, flags), ListenOptions(backlog, sharing))


def bind_sibling(sock: socket.socket, options: ListenOptions) -> socket.socket:
    """Return another listening socket for the address of `sock`; the kernel divides the connections among all of them.

    See SO_REUSEPORT, socket(7). Raises BindError.
    """
    return _bind_one(sock, sock.getsockname(), options)


def bind_exactly(family: int, address: Any, v6only: bool, options: ListenOptions) -> socket.socket:
    """Return a listening socket for one numeric socket address; an IPv6 one for both families unless `v6only`.

    Raises BindError.
    """
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        _listen(sock, address, options, v6only)
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise _bind_error(address, exc) from exc
    return sock


def bind_replacement(sock: socket.socket, address: Any, options: ListenOptions) -> socket.socket:
    """Return a new listening socket for `address`, that of `sock`, which still listens and cannot be repaired.

    Each of the two may get a connection until `sock` is closed in every process. Raises BindError.
    """
    fresh = None
    try:
        shared = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        fresh = _bind_one(sock, address, options)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    except BindError:
        raise
    except OSError as exc:
        if fresh is not None:
            fresh.close()
        raise _bind_error(address, exc) from exc
    return fresh


def resolve(
    port: int | None, address: str | None = None, family: int = socket.AF_UNSPEC, flags: int | None = None
) -> Resolved:
    """Look up the addresses for `bind_resolved`; the parameters are those of `bind_sockets`.

    Block for a host name, unless `flags` has AI_NUMERICHOST. Raises socket.gaierror for a name that does not resolve,
    ConfigError for a port that is no number from 0 to 65535.
    """
    if port is not None:
        check_int("port", port, 0, 65535)
    address = address or None
    if family == socket.AF_UNSPEC and not socket.has_ipv6:
        # Python can be built without IPv6 on a system whose resolver still returns IPv6 addresses.
        family = socket.AF_INET
    # A numeric address as bytes, because for text Python imports the codec of international names, and its tables.
    host = address.encode() if address and _NUMERIC.issuperset(address) else address
    found: list[tuple[int, _SockAddr]] = []
    for af, _, _, _, where in socket.getaddrinfo(
        host, port or 0, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE if flags is None else flags
    ):
        if sys.platform == "darwin" and address == "localhost" and af == socket.AF_INET6 and where[3] != 0:
            # macOS also gives localhost a link-local address with a scope (fe80::1%lo0), which cannot be bound.
            continue
        if (af, where) not in found:
            found.append((af, where))
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return Resolved(port or 0, found, address is None or address == "localhost")


def bind_resolved(resolved: Resolved, options: ListenOptions) -> list[socket.socket]:
    """Bind all addresses of `resolved`, as `bind_sockets` promises. Raises BindError. Never block."""
    for attempt in range(MAX_PORT_ATTEMPTS):
        try:
            return _bind_all(resolved, options)
        except BindError as exc:
            if resolved.port or exc.errno != errno.EADDRINUSE or attempt == MAX_PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _bind_all(resolved: Resolved, options: ListenOptions) -> list[socket.socket]:
    port = resolved.port
    sockets: list[socket.socket] = []
    skipped: BindError | None = None
    with contextlib.ExitStack() as undo:
        for af, found in resolved.addresses:
            where = (found[0], port, *found[2:])
            try:
                sock = socket.socket(af, socket.SOCK_STREAM)
            except OSError as exc:
                if exc.errno == errno.EAFNOSUPPORT:
                    skipped = _bind_error(where, exc)
                    continue
                raise _bind_error(where, exc) from exc
            undo.callback(sock.close)
            try:
                _listen(sock, where, options)
            except OSError as exc:
                failure = _bind_error(where, exc)
                if exc.errno == errno.EADDRNOTAVAIL and af == socket.AF_INET6 and resolved.optional_ipv6:
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


def _bind_one(like: socket.socket, address: Any, options: ListenOptions) -> socket.socket:
    sock = None
    try:
        sock = socket.socket(like.family, socket.SOCK_STREAM)
        _listen(sock, address, replace(options, sharing=Sharing.OPEN))
    except OSError as exc:
        if sock is not None:
            sock.close()
        raise _bind_error(address, exc) from exc
    return sock


def _listen(sock: socket.socket, where: _SockAddr, options: ListenOptions, v6only: bool = True) -> None:
    if os.name != "nt":
        # On Windows it would let two servers have one port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.sharing is Sharing.OPEN:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    sock.bind(where)
    if options.sharing is Sharing.CLAIMED:
        # Only now, because without it bind(2) fails if any other socket has the port, even one with SO_REUSEPORT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    options.apply(sock)


def _bind_error(where: _SockAddr, exc: OSError) -> BindError:
    return BindError(format_address(where), exc.errno or 0, _CURES.get(exc.errno or 0, ""))


def repair_shutdown(sock: socket.socket, address: Any, backlog: int) -> bool:
    """Repair a listening socket that another process has shut down. Return whether it was shut down and listens again.

    It is still bound, unless the kernel had chosen its port: `address` is what getsockname(2) returned before.
    """
    with contextlib.suppress(OSError):
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # Linux frees a port of its own choice in tcp_set_state(), although getsockname() still returns it.
            with contextlib.suppress(OSError):
                sock.bind(address)
            sock.listen(backlog)
            return True
    return False


def inode(sock: socket.socket) -> int:
    """Return what identifies a socket in every process that has it."""
    return os.fstat(sock.fileno()).st_ino


def require_listening(sock: socket.socket) -> None:
    """Raise ValueError unless `sock` is a stream socket that listens; otherwise accept(2) would fail for ever."""
    try:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{describe(sock)} is no stream socket, but {sock.type.name}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"{describe(sock)} does not listen: call listen() on the socket first")
    except OSError as exc:
        raise ValueError(f"{describe(sock)} is no listening socket: {reason_of(exc)}") from exc


def describe(sock: socket.socket) -> str:
    """Return the address of a listening socket for a log line: `127.0.0.1:9000`, `[::1]:9000`, `unix:/run/x.sock`.

    A name in the abstract namespace is written as ss(8) writes it: `unix:@name`.
    """
    try:
        name = sock.getsockname()
    except OSError:
        return f"descriptor {sock.fileno()}"
    if sock.family == getattr(socket, "AF_UNIX", None):
        return f"unix:{os.fsdecode(name)}".replace("\0", "@")
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
