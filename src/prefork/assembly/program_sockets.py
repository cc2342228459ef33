"""Bind what a program asks for, once for all workers, and find what is held already.

Which held socket an address stands for is decided in `core/held_addresses.py`; the sockets belong to
`system/listeners.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterable

from ..addresses import Address, TCPAddress, UnixAddress
from ..config import Settings
from ..core.held_addresses import HeldAddress, match
from ..core.worker_requests import IPV6, UNIX, BindRequest, Refused
from ..errors import BindError
from ..system import paths
from ..system.credentials import Identity, as_user
from ..system.listen_options import ListenOptions
from ..system.listeners import BoundAddress, Listeners, is_for_program, program_key
from ..system.sockets import bind_exactly, describe
from ..system.unix_sockets import bind_unix_socket, bind_with_file

#: Sockets that a program may have bound, besides those that --bind names.
MAX_PROGRAM_SOCKETS = 64


class ProgramSockets:
    """The sockets that workers of a program share: those of --bind, and those that the program asked for."""

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners

    def bound(self) -> tuple[BoundAddress, ...]:
        """Return what was bound for a program, without what --bind names."""
        return tuple(each for each in self._listeners.all() if is_for_program(each))

    def find(self, request: BindRequest, named: Iterable[BoundAddress]) -> socket.socket | Refused | None:
        """Return the held socket that `request` stands for; None if there is none."""
        held = held_sockets(named, self.bound())
        found = match(request, [address for address, _, _ in held])
        return held[found][1] if isinstance(found, int) else found

    def bind(self, request: BindRequest, settings: Settings, identity: Identity | None) -> socket.socket | Refused:
        """Bind an address for a program, with the rights of its user, or, if --allow-bind names it, of this process."""
        if len(self.bound()) >= MAX_PROGRAM_SOCKETS:
            return Refused(errno.EMFILE, f"a program can have {MAX_PROGRAM_SOCKETS} addresses bound")
        allowed = any(_names(address, request) for address in settings.allow_bind)
        options = ListenOptions(settings.backlog, mode=request.mode)
        try:
            with contextlib.nullcontext() if allowed else as_user(identity):
                bound = _bind(request, options)
        except BindError as exc:
            return Refused(exc.errno or errno.EACCES, str(exc))
        except OSError as exc:
            return Refused(exc.errno or errno.EACCES, f"bind {request.text()}: {exc.strerror}")
        self._listeners.add(bound)
        return bound.endpoints[0][0]

    def holds_path(self, path: str) -> bool:
        """Return whether a held socket has its file at `path`."""
        return any(
            each.file is not None and each.file.path == path and each.file.exists() for each in self._listeners.all()
        )


def held_sockets(
    named: Iterable[BoundAddress], asked: Iterable[BoundAddress]
) -> list[tuple[HeldAddress, socket.socket, BoundAddress]]:
    """Return each held socket with its address: `named` by --bind, and `asked` for by the program."""
    found = []
    for is_named, bounds in ((True, named), (False, asked)):
        for bound in bounds:
            for sock in bound.sockets():
                found.append((_address(sock, bound, is_named), sock, bound))
    return found


def inode(sock: socket.socket) -> int:
    """Return what identifies a socket in every process that has it."""
    return os.fstat(sock.fileno()).st_ino


def is_exclusive(settings: Settings, request: BindRequest | HeldAddress) -> bool:
    """Return whether only the worker in slot 0 listens on an address (--exclusive)."""
    return any(_names(address, request) for address in settings.exclusive)


def describe_sockets(listeners: Listeners, inodes: Collection[int]) -> str:
    """Return the addresses of held sockets, as messages name them."""
    found = [describe(sock) for bound in listeners.all() for sock in bound.sockets() if inode(sock) in inodes]
    return " or ".join(found) or "an address that is not held any more"


def _address(sock: socket.socket, bound: BoundAddress, named: bool) -> HeldAddress:
    name = sock.getsockname()
    key = "" if named else program_key(bound)
    if sock.family == socket.AF_UNIX:
        path = bound.file.path if bound.file is not None else os.fsdecode(name)
        return HeldAddress(UNIX, path, 0, True, named, key)
    v6only = sock.family != socket.AF_INET6 or bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return HeldAddress(int(sock.family), name[0].partition("%")[0], name[1], v6only, named, key)


def _bind(request: BindRequest, options: ListenOptions) -> BoundAddress:
    requested = f"program:{request.key}"
    if request.family != UNIX:
        where = (request.host, request.port)
        address = (*where, 0, request.scope) if request.family == IPV6 else where
        return BoundAddress(requested, ((bind_exactly(request.family, address, request.v6only, options),),))
    if request.host.startswith("\0"):
        return BoundAddress(requested, ((bind_unix_socket(request.host, backlog=options.backlog),),))
    sock, file = bind_with_file(request.host, options)
    return BoundAddress(requested, ((sock,),), file)


def _names(address: Address, request: BindRequest | HeldAddress) -> bool:
    """Return whether an address of an option stands for that of a request."""
    if isinstance(address, UnixAddress):
        return request.family == UNIX and paths.absolute(address.path) == request.host
    if not isinstance(address, TCPAddress) or request.family == UNIX or address.port != request.port:
        return False
    local = ("127.0.0.1", "::1") if address.host == "localhost" else (address.host,)
    return address.host is None or request.host in local
