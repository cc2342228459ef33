"""Claims: which socket a program gets for an address that it binds, in one worker.

What is held is known from the fork, or asked for over the worker's channel. The system calls of the program are in
`socket_level.py` and `loop_level.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from ..addresses import Address
from ..core.held_addresses import match
from ..core.worker_requests import IPV6, UNIX, BindRequest, Granted, HeldRequest, Refused
from ..system.held_sockets import HeldSocket, address_of, is_named
from ..system.listeners import BoundAddress
from ..system.sockets import inode
from ..system.worker_channel import WorkerEnd
from .private_paths import is_private


@dataclass(frozen=True, slots=True)
class Claim:
    """What a program gets for an address. The sockets are the claims' own: duplicate what is to be closed."""

    sock: socket.socket | None
    """None: only another worker listens on the address, and this one pretends to (--exclusive)."""
    siblings: tuple[socket.socket, ...] = ()
    """The other sockets of the same --bind, if it was chosen although the program named another address."""


class Bindable(Protocol):
    """What was bound: a socket of the program's, or an `Owner`."""

    def fileno(self) -> int: ...


class Owner:
    """Stands for the sockets that asyncio would make for one server; open until `close`."""

    __slots__ = ("__weakref__", "_open")

    def __init__(self) -> None:
        self._open = True

    def fileno(self) -> int:
        return 0 if self._open else -1

    def close(self) -> None:
        self._open = False


class Claims:
    """The held sockets as one worker knows them, and the calls that its program has made. Any thread may call it.

    `has_served` tells whether the worker has accepted a connection, `is_accepting` whether the supervisor counts it
    among those that accept.
    """

    def __init__(
        self,
        channel: WorkerEnd,
        held: Iterable[HeldSocket],
        exclusive: Iterable[Address],
        slot: int,
        has_served: Callable[[], bool],
        is_accepting: Callable[[], bool],
    ) -> None:
        self._channel = channel
        self._held = list(held)
        self._inodes = {inode(each.sock) for each in self._held}
        self._exclusive = tuple(exclusive)
        self._slot = slot
        self._has_served = has_served
        self._is_accepting = is_accepting
        self._calls: Counter[tuple[int, str]] = Counter()
        """Calls for any free port, by family and host."""
        self._owners: dict[tuple[int, str, int], weakref.WeakSet[Bindable]] = defaultdict(weakref.WeakSet)
        """The program's sockets that were bound to each address."""
        self._lock = threading.RLock()

    def claim(
        self,
        owner: Bindable,
        family: int,
        address: Any,
        *,
        v6only: bool = True,
        reuse_port: bool = False,
        mode: int = 0o600,
    ) -> Claim | None:
        """Return what `owner`, a socket of the program's, gets for a numeric `address`; None: it is its own to bind.

        Raises OSError, as bind(2) would.
        """
        host, port, scope = _split(family, address)
        any_port = family != UNIX and port == 0
        if any_port and self._is_accepting():
            # A port for one connection, as of FTP: it is no other worker's.
            return None
        if family == UNIX and is_private(host):
            return None
        with self._lock:
            nth = self._count(owner, family, host, port, reuse_port)
            request = BindRequest(family, host, port, scope, nth, v6only, mode)
            found = match(request, [each.address for each in self._held])
            if isinstance(found, Refused):
                raise OSError(found.errno, found.reason)
            if found is None:
                # Probably for one connection, too; but a server that its predecessor had is found above.
                return None if any_port and self._has_served() else self._ask_to_bind(request)
            held = self._held[found]
            if self._slot and (is_named(self._exclusive, request) or is_named(self._exclusive, held.address)):
                return Claim(None)
            return Claim(held.sock, _siblings(held, host))

    def _count(self, owner: Bindable, family: int, host: str, port: int, reuse_port: bool) -> int:
        """Return which of the sockets for this address it gets, from 0: each call for any free port gets another one.

        Calls with `reuse_port` for the same port share a socket: what the kernel would spread over several, as the
        threads of a program have them, is spread by their accepting. Raises OSError if the address is in use.
        """
        if family != UNIX and port == 0:
            self._calls[family, host] += 1
            return self._calls[family, host] - 1
        owners = self._owners[family, host, port]
        if not reuse_port and any(each.fileno() >= 0 and each is not owner for each in owners):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        owners.add(owner)
        return 0

    def _ask_to_bind(self, request: BindRequest) -> Claim | None:
        answer, sock = self._channel.ask(request)
        if isinstance(answer, Granted):
            if answer.silent:
                return Claim(None)
            if sock is not None:
                self._held.append(HeldSocket(address_of(sock, request.key), sock, None))
                self._inodes.add(inode(sock))
                return Claim(sock)
        if isinstance(answer, Refused) and answer.errno:
            raise OSError(answer.errno, answer.reason)
        return None

    def is_held(self, sock: socket.socket) -> bool:
        """Return whether a socket of the program's is a held one, by whatever way it got it."""
        try:
            return bool(self._inodes) and inode(sock) in self._inodes
        except OSError:
            return False

    def holds_path(self, path: str) -> bool:
        """Return whether the file of a held unix socket is at `path`."""
        with self._lock:
            if any(each.address.family == UNIX and each.address.host == path for each in self._held):
                return True
            return isinstance(self._channel.ask(HeldRequest(path))[0], Granted)


def _split(family: int, address: Any) -> tuple[str, int, int]:
    if family == UNIX:
        name = os.fsdecode(address)
        return (name if name.startswith("\0") else absolute(name)), 0, 0
    scope = address[3] if family == IPV6 and len(address) > 3 else 0
    return str(address[0]).partition("%")[0], int(address[1]), int(scope)


def absolute(path: str) -> str:
    """Return a path as it is known to the supervisor, which is in another directory: through no link to a directory."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def _siblings(held: HeldSocket, host: str) -> tuple[socket.socket, ...]:
    bound: BoundAddress | None = held.bound
    if bound is None or not held.address.named or held.address.host == host:
        return ()
    return tuple(sock for sock in bound.sockets() if sock is not held.sock)
