"""The listening sockets of a server, by what asked for them: bound once, kept over reloads, handed from one supervisor
to the next, closed when nobody wants them.

One owner, in the supervisor. Who accepts from them, and when, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..addresses import Address, FdAddress, SystemdAddress, TCPAddress, UnixAddress
from ..errors import BindError, ConfigError
from . import listener_options
from .file_ownership import FileOwnership
from .socket_activation import SystemdSockets, adopt
from .sockets import (
    bind_replacement,
    bind_shared_port,
    bind_sibling,
    bind_sockets,
    describe,
    relisten,
)
from .unix_sockets import File, bind_with_file

#: The sockets of one endpoint: one that all workers share, or with SO_REUSEPORT one for each, between which the kernel
#: chooses for each connection.
Lanes = tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """What one `--bind` has become: an endpoint for each address that it stands for."""

    asked: str
    """The address as it was asked for, without what may change while it is bound."""
    endpoints: tuple[Lanes, ...]
    file: File | None = None

    def describe(self) -> list[str]:
        """Each endpoint in words: `127.0.0.1:9000 (tcp)`."""
        if self.file is not None:
            return [f"unix:{self.file.path} (unix)"]
        kinds = {socket.AF_UNIX: "unix"}
        return [f"{describe(lanes[0])} ({kinds.get(lanes[0].family, 'tcp')})" for lanes in self.endpoints]

    def sockets(self) -> list[socket.socket]:
        """All of them."""
        return [sock for lanes in self.endpoints for sock in lanes]

    @property
    def passed(self) -> bool:
        """Whether a parent or systemd has bound it: it is mended, and neither bound anew nor shut down."""
        return self.asked.startswith(("fd:", "systemd"))

    def shut_down(self) -> None:
        """Have the kernel refuse connections from now on, whatever holds the sockets, if they are ours."""
        if not self.passed:
            for sock in self.sockets():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Damage:
    """What a process that shares a listening socket had done to it."""

    address: str
    listener: Listener
    shut_down: bool
    """It listens again."""
    options: tuple[str, ...]
    """What had been set."""
    lasting: tuple[str, ...]
    """What of that cannot be set back."""


class Listeners:
    """Everything that this process listens on. `close` it in the end; a worker calls `keep_in_worker` instead.

    Whose the files are of those that were `inherited`, and of the rest, is as `tenure` says.
    """

    def __init__(self, inherited: Iterable[Listener] = ()) -> None:
        self._listeners = list(inherited)
        self._inherited = frozenset(self._listeners)
        self.tenure = FileOwnership.PROVISIONAL if self._inherited else FileOwnership.OWNER
        self._passed: SystemdSockets | None = SystemdSockets()
        self._names: dict[socket.socket, Any] = {}
        """What getsockname() says of each while it listens."""
        self._wanted: dict[socket.socket, listener_options.Snapshot] = {}
        """What each was set to before a worker had it."""
        self._given_up: set[Listener] = set()
        """Those that had to be bound anew, and that workers hold yet."""
        self._remember()

    def arrange(self, addresses: Sequence[Address], backlog: int, lanes: int | None) -> tuple[Listener, ...]:
        """Listeners for `addresses`, in this order: those that are there already, and fresh ones.

        `lanes` is how many sockets each endpoint of a fresh TCP address gets; None: one, without SO_REUSEPORT. All or
        nothing: raises BindError, and nothing has changed then. What is not asked for any more stays until `keep`.

        After the first time, when a service is running, nothing is taken that may block or be ours already: raises
        ConfigError for a host name that would have to be looked up, and for descriptors of a parent or of systemd.
        """
        left = list(self._listeners)
        arranged: list[Listener] = []
        with contextlib.ExitStack() as undo:
            for address in addresses:
                known = next((each for each in left if each.asked == _asked(address)), None)
                if known is None:
                    if self._passed is None:
                        _refuse_while_running(address)
                    listener = self._bind(address, backlog, lanes, arranged)
                    undo.callback(self._close, listener)
                else:
                    left.remove(known)
                    listener = known
                    if lanes is not None and not _shares_port(known):
                        raise ConfigError(f"--reuse-port: {known.asked} was bound without it; restart")
                arranged.append(listener)
            undo.pop_all()
        self._passed = None
        self._listeners = arranged + left
        self._remember()
        return tuple(arranged)

    def adjust(
        self, listeners: Sequence[Listener], addresses: Sequence[Address], backlog: int, gid: int | None
    ) -> None:
        """What can change while a socket is bound: the length of its queue, and the mode and group of its file."""
        for address, listener in zip(addresses, listeners, strict=True):
            if isinstance(address, FdAddress | SystemdAddress):
                continue
            for sock in listener.sockets():
                sock.listen(backlog)
                if sock in self._wanted:
                    self._wanted[sock] = {**self._wanted[sock], **listener_options.take_queue_length(sock)}
            if isinstance(address, UnixAddress) and listener.file is not None:
                listener.file.set_access(address.mode, gid)

    def mend(self, backlog: int) -> list[Damage]:
        """Listen again where a process that shares a socket has shut it down, and set back what it has set; what was
        found."""
        found = [
            self._mend(listener, sock, backlog)
            for listener in self._listeners
            for sock in listener.sockets()
            if sock in self._names
        ]
        return [damage for damage in found if damage.shut_down or damage.options]

    def _mend(self, listener: Listener, sock: socket.socket, backlog: int) -> Damage:
        wanted = self._wanted[sock]
        length = wanted.get("backlog", backlog)
        shut_down = relisten(sock, self._names[sock], length if isinstance(length, int) else backlog)
        options, lasting = listener_options.mend(sock, wanted)
        if not listener.passed and _is_tcp(sock) and listener_options.detach_program(sock):
            options += ("SO_ATTACH_REUSEPORT_CBPF",)
        if listener.passed and lasting:
            # Nothing can be done about it: it is told once.
            self._wanted[sock] = listener_options.take(sock)
        return Damage(describe(sock), listener, shut_down, options, lasting)

    def bind_anew(self, listener: Listener, backlog: int) -> Listener:
        """Fresh sockets for the address of one that cannot be mended. That one stays, unmended, until no worker can be
        forked with it. Raises BindError."""
        fresh = _unix_anew(listener, backlog) if listener.file is not None else self._tcp_anew(listener, backlog)
        self._listeners.insert(self._listeners.index(listener), fresh)
        self._given_up.add(listener)
        for sock in listener.sockets():
            self._forget(sock)
        self._remember()
        return fresh

    def _tcp_anew(self, listener: Listener, backlog: int) -> Listener:
        with contextlib.ExitStack() as undo:
            endpoints: list[Lanes] = []
            for lanes in listener.endpoints:
                fresh = []
                for sock in lanes:
                    fresh.append(bind_replacement(sock, self._names[sock], backlog))
                    undo.callback(fresh[-1].close)
                endpoints.append(tuple(fresh))
            undo.pop_all()
        return replace(listener, endpoints=tuple(endpoints))

    def _forget(self, sock: socket.socket) -> None:
        self._names.pop(sock, None)
        self._wanted.pop(sock, None)

    def _remember(self) -> None:
        for listener in self._listeners:
            for sock in listener.sockets():
                if sock not in self._names and listener not in self._given_up:
                    self._names[sock] = sock.getsockname()
                    self._wanted[sock] = listener_options.take(sock)

    def lost(self) -> list[str]:
        """The unix sockets whose files are not there any more."""
        return [each.file.path for each in self._listeners if each.file is not None and not each.file.exists()]

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

    def close(self, but: Listener | None = None, shared: bool = False) -> None:
        """Close all, or all but one, and remove the files of unix sockets, if they are ours.

        Those that we have bound are shut down, if no other supervisor has them: a process that a handler has forked may
        hold one, and the kernel would go on accepting for it. `shared`: the supervisor before us has them still.
        """
        if self.tenure is FileOwnership.OWNER and not shared:
            for listener in self._listeners:
                if listener is not but:
                    listener.shut_down()
        self.keep(() if but is None else (but,))

    def bind_control(self, path: str, backlog: int) -> Listener:
        """The control socket, for its owner alone; one that was inherited is kept. Raises BindError."""
        asked = f"control:{path}"
        for listener in self._listeners:
            if listener.asked == asked:
                return listener
        listener = _unix(asked, path, 0o600, backlog)
        self._listeners.append(listener)
        return listener

    def _close(self, listener: Listener) -> None:
        for sock in listener.sockets():
            self._forget(sock)
            sock.close()
        self._given_up.discard(listener)
        if listener.file is not None and self.tenure.owns(listener in self._inherited):
            listener.file.remove()

    def _bind(self, address: Address, backlog: int, lanes: int | None, earlier: Sequence[Listener]) -> Listener:
        try:
            return self._bind_address(address, backlog, lanes)
        except BindError as exc:
            ports = {sock.getsockname()[1] for each in earlier for sock in each.sockets() if _is_tcp(sock)}
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress) and address.port in ports:
                raise BindError(exc.address, exc.errno, "another --bind of this command has it") from exc
            running = {sock.getsockname()[1] for each in self._listeners for sock in each.sockets() if _is_tcp(sock)}
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress) and address.port in running:
                cure = "this server has it on another address, which has to go first, by a reload of its own"
                raise BindError(exc.address, exc.errno, cure) from exc
            raise

    def _bind_address(self, address: Address, backlog: int, lanes: int | None) -> Listener:
        asked = _asked(address)
        match address:
            case FdAddress():
                return _single(asked, [adopt(address.fd)])
            case SystemdAddress():
                return _single(asked, self._passed.take(address.name) if self._passed is not None else [])
            case UnixAddress():
                return _unix(asked, address.path, address.mode, backlog)
        try:
            if lanes is None:
                return _single(asked, bind_sockets(address.port, address.host, backlog=backlog))
            first = _single(asked, bind_shared_port(address.port, address.host, backlog))
        except socket.gaierror as exc:
            raise BindError(asked, errno.EADDRNOTAVAIL, (exc.strerror or str(exc)).lower()) from exc
        with contextlib.ExitStack() as undo:
            undo.callback(self._close, first)
            endpoints: list[Lanes] = []
            for endpoint in first.endpoints:
                more = [bind_sibling(endpoint[0], backlog) for _ in range(1, lanes)]
                for sock in more:
                    undo.callback(sock.close)
                endpoints.append((*endpoint, *more))
            undo.pop_all()
        return replace(first, endpoints=tuple(endpoints))


def _unix(asked: str, path: str, mode: int, backlog: int) -> Listener:
    sock, file = bind_with_file(path, mode, backlog)
    return Listener(asked, ((sock,),), file)


def _unix_anew(listener: Listener, backlog: int) -> Listener:
    """A fresh socket in the place of the file of `listener`, with the mode and the group that it has."""
    file = listener.file
    assert file is not None
    try:
        found = file.stat()
    except OSError as exc:
        raise BindError(f"unix:{file.path}", exc.errno or 0) from exc
    file.remove()
    fresh = _unix(listener.asked, file.path, stat.S_IMODE(found.st_mode), backlog)
    if fresh.file is not None:
        fresh.file.set_access(stat.S_IMODE(found.st_mode), found.st_gid)
    return fresh


def _refuse_while_running(address: Address) -> None:
    if isinstance(address, FdAddress | SystemdAddress):
        raise ConfigError(f"--bind {address}: can be taken at the start alone; restart")
    if isinstance(address, TCPAddress) and address.host not in (None, "localhost") and not _is_numeric(address.host):
        raise ConfigError(
            f"--bind {address}: a name is not looked up while the server runs, as that may take long; write an "
            "address, or upgrade"
        )


def _is_numeric(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return False
    return True


def _single(asked: str, sockets: Iterable[socket.socket]) -> Listener:
    return Listener(asked, tuple((sock,) for sock in sockets))


def _asked(address: Address) -> str:
    """What makes two addresses the same listener: the mode of a unix socket's file is none of it."""
    return f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _shares_port(listener: Listener) -> bool:
    """Whether what can have lanes has them."""
    tcp = [sock for sock in listener.sockets() if _is_tcp(sock)]
    return all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in tcp)
