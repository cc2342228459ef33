"""The listening sockets of a server, by what asked for them: bound once, kept over reloads, handed from one supervisor
to the next, closed when nobody wants them.

One owner, in the supervisor. Who accepts from them, and when, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..addresses import Address, FdAddress, SystemdAddress, TCPAddress, UnixAddress
from ..errors import BindError
from .inherited import Passed, adopt
from .sockets import (
    add_lane,
    bind_shared_port,
    bind_sockets,
    bind_unix_socket,
    describe,
    socket_file,
    unlink_unix_socket,
)

#: The sockets of one endpoint: one that all workers share, or with SO_REUSEPORT one for each, between which the kernel
#: chooses for each connection.
Lanes = tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True)
class File:
    """The file of a unix socket that we bound."""

    path: str
    """Absolute: the supervisor may be in another folder when it removes it."""
    device: int
    inode: int

    @classmethod
    def of(cls, path: str) -> File:
        """The one at `path`."""
        return cls(os.path.abspath(path), *socket_file(path))

    def remove(self) -> None:
        """Unless another one has taken its place."""
        unlink_unix_socket(self.path, (self.device, self.inode))

    def change_mode(self, mode: int) -> None:
        """The same."""
        with contextlib.suppress(OSError):
            if socket_file(self.path) == (self.device, self.inode):
                os.chmod(self.path, mode)


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """What one `--bind` has become: an endpoint for each address that it stands for."""

    asked: str
    """The address as it was asked for, without what may change while it is bound."""
    endpoints: tuple[Lanes, ...]
    file: File | None = None

    def describe(self) -> list[str]:
        """Each endpoint in words: `127.0.0.1:9000 (tcp)`."""
        kinds = {socket.AF_UNIX: "unix"}
        return [f"{describe(lanes[0])} ({kinds.get(lanes[0].family, 'tcp')})" for lanes in self.endpoints]

    def sockets(self) -> list[socket.socket]:
        """All of them."""
        return [sock for lanes in self.endpoints for sock in lanes]


class Listeners:
    """Everything that this process listens on. `close` it in the end; a worker calls `keep_in_worker` instead.

    Those that were `inherited` from a supervisor that still runs are its own until `own` is called: what is closed
    before that leaves their files alone.
    """

    def __init__(self, inherited: Iterable[Listener] = ()) -> None:
        self._listeners = list(inherited)
        self._owning = not self._listeners
        self._passed = Passed()

    def arrange(self, addresses: Sequence[Address], backlog: int, lanes: int | None) -> tuple[Listener, ...]:
        """Listeners for `addresses`, in this order: those that are there already, and fresh ones.

        `lanes` is how many sockets each endpoint of a TCP address has at least; None: one, without SO_REUSEPORT. All or
        nothing: raises BindError, and nothing has changed then. What is not asked for any more stays until `keep`.
        """
        left = list(self._listeners)
        arranged: list[Listener] = []
        with contextlib.ExitStack() as undo:
            for address in addresses:
                known = next((each for each in left if each.asked == _asked(address)), None)
                if known is None:
                    listener = self._bind(address, backlog, lanes, arranged)
                    undo.callback(self._close, listener)
                else:
                    left.remove(known)
                    listener = _widen(known, backlog, lanes, undo)
                arranged.append(listener)
            undo.pop_all()
        for address, listener in zip(addresses, arranged, strict=True):
            _adjust(listener, address, backlog)
        self._listeners = arranged + left
        return tuple(arranged)

    def keep(self, wanted: Iterable[Listener]) -> None:
        """Close what is not among `wanted`."""
        kept = {sock for listener in wanted for sock in listener.sockets()}
        for listener in self._listeners[:]:
            if not kept.intersection(listener.sockets()):
                self._listeners.remove(listener)
                self._close(listener)

    def keep_in_worker(self, wanted: Iterable[Listener]) -> None:
        """In a worker: close its copies of what is not among `wanted`. The files are not its own."""
        kept = {sock for listener in wanted for sock in listener.sockets()}
        for listener in self._listeners:
            for sock in listener.sockets():
                if sock not in kept:
                    sock.close()

    def all(self) -> tuple[Listener, ...]:
        """What there is."""
        return tuple(self._listeners)

    def own(self) -> None:
        """The files of unix sockets are ours to remove."""
        self._owning = True

    def disown(self) -> None:
        """They are another supervisor's."""
        self._owning = False

    def close(self) -> None:
        """Close all, and remove the files of unix sockets, if they are ours."""
        self.keep(())

    def bind_control(self, path: str, backlog: int) -> Listener:
        """The control socket, for its owner alone; one that was inherited is kept. Raises BindError."""
        asked = f"control:{path}"
        for listener in self._listeners:
            if listener.asked == asked:
                return listener
        sock = bind_unix_socket(path, 0o600, backlog)
        listener = Listener(asked, ((sock,),), File.of(path))
        self._listeners.append(listener)
        return listener

    def _close(self, listener: Listener) -> None:
        for sock in listener.sockets():
            sock.close()
        if listener.file is not None and self._owning:
            listener.file.remove()

    def _bind(self, address: Address, backlog: int, lanes: int | None, earlier: Sequence[Listener]) -> Listener:
        try:
            return self._bind_address(address, backlog, lanes)
        except BindError as exc:
            ports = {sock.getsockname()[1] for each in earlier for sock in each.sockets() if _is_tcp(sock)}
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress) and address.port in ports:
                raise BindError(exc.address, exc.errno, "another --bind of this command has it") from exc
            raise

    def _bind_address(self, address: Address, backlog: int, lanes: int | None) -> Listener:
        asked = _asked(address)
        match address:
            case FdAddress():
                return _single(asked, [adopt(address.fd)])
            case SystemdAddress():
                return _single(asked, self._passed.take(address.name))
            case UnixAddress():
                sock = bind_unix_socket(address.path, address.mode, backlog)
                return Listener(asked, ((sock,),), File.of(address.path))
        try:
            if lanes is None:
                return _single(asked, bind_sockets(address.port, address.host, backlog=backlog))
            first = _single(asked, bind_shared_port(address.port, address.host, backlog))
        except socket.gaierror as exc:
            raise BindError(asked, errno.EADDRNOTAVAIL, (exc.strerror or str(exc)).lower()) from exc
        with contextlib.ExitStack() as undo:
            undo.callback(self._close, first)
            listener = _widen(first, backlog, lanes, undo)
            undo.pop_all()
        return listener


def _single(asked: str, sockets: Iterable[socket.socket]) -> Listener:
    return Listener(asked, tuple((sock,) for sock in sockets))


def _asked(address: Address) -> str:
    """What makes two addresses the same listener: the mode of a unix socket's file is none of it."""
    return f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)


def _widen(listener: Listener, backlog: int, lanes: int | None, undo: contextlib.ExitStack) -> Listener:
    """The listener with at least so many lanes; those that are new are closed by `undo`."""
    endpoints: list[Lanes] = []
    for endpoint in listener.endpoints:
        more: list[socket.socket] = []
        if lanes is not None and _is_tcp(endpoint[0]) and _shares_port(endpoint[0]):
            for _ in range(len(endpoint), lanes):
                more.append(add_lane(endpoint[0], backlog))
                undo.callback(more[-1].close)
        endpoints.append((*endpoint, *more))
    return replace(listener, endpoints=tuple(endpoints))


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _shares_port(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _adjust(listener: Listener, address: Address, backlog: int) -> None:
    """What can change while it is bound: the length of its queue, and the mode of its file."""
    if isinstance(address, FdAddress | SystemdAddress):
        return
    for sock in listener.sockets():
        sock.listen(backlog)
    if isinstance(address, UnixAddress) and listener.file is not None:
        listener.file.change_mode(address.mode)
