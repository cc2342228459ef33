"""The listening sockets that a supervisor holds, each with its address, as the supervisor and its workers see them.

Which of them an address stands for is decided in `core/held_addresses.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

from ..addresses import Address, TCPAddress, UnixAddress
from ..core.held_addresses import HeldAddress
from ..core.worker_requests import UNIX, BindRequest
from . import paths
from .listeners import BoundAddress, program_key


class HeldSocket(NamedTuple):
    """A socket that is held, and what it was bound for."""

    address: HeldAddress
    sock: socket.socket
    bound: BoundAddress | None
    """None: this process knows the socket only, and not what it was bound with."""


def held_sockets(named: Iterable[BoundAddress], asked: Iterable[BoundAddress]) -> list[HeldSocket]:
    """Return each held socket with its address: `named` by --bind, and `asked` for by the program."""
    found = [(bound, sock, "") for bound in named for sock in bound.sockets()]
    found += [(bound, sock, program_key(bound)) for bound in asked for sock in bound.sockets()]
    return [HeldSocket(address_of(sock, key, bound), sock, bound) for bound, sock, key in found]


def address_of(sock: socket.socket, key: str, bound: BoundAddress | None = None) -> HeldAddress:
    """Return the address of a held socket; `key` is that of the request for which it was bound, "" for --bind."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        path = bound.file.path if bound is not None and bound.file is not None else os.fsdecode(name)
        return HeldAddress(UNIX, path, 0, True, not key, key)
    v6only = sock.family != socket.AF_INET6 or bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return HeldAddress(int(sock.family), name[0].partition("%")[0], name[1], v6only, not key, key)


def is_named(addresses: Iterable[Address], wanted: BindRequest | HeldAddress) -> bool:
    """Return whether one of the `addresses` of an option stands for the one that is `wanted`."""
    return any(_names(address, wanted) for address in addresses)


def _names(address: Address, wanted: BindRequest | HeldAddress) -> bool:
    if isinstance(address, UnixAddress):
        return wanted.family == UNIX and paths.absolute(address.path) == wanted.host
    if not isinstance(address, TCPAddress) or wanted.family == UNIX or address.port != wanted.port:
        return False
    local = ("127.0.0.1", "::1") if address.host == "localhost" else (address.host,)
    return address.host is None or wanted.host in local
