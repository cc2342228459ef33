"""Own the listening sockets of a server: bound once, kept over reloads, handed to a successor, closed when unused.

There is one owner, in the supervisor. `sockets.py` and `unix_sockets.py` bind; nothing here accepts.
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
from ..checks import reject
from ..errors import BindError, ConfigError, reason_of
from .file_ownership import FileOwnership
from .listen_options import ListenOptions, Sharing
from .socket_activation import SystemdSockets, from_fd
from .socket_snapshot import Snapshot, detach_program, restore, snapshot, snapshot_backlog
from .sockets import bind_replacement, bind_shared_port, bind_sibling, bind_sockets, describe, relisten
from .unix_sockets import File, bind_with_file

#: The sockets of one endpoint: one that all workers share, or with SO_REUSEPORT one for each worker (socket(7)).
ReuseportGroup = tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """The result of one `--bind`: an endpoint for each address that it resolved to."""

    requested: str
    """The address of the option, without what may change while it is bound."""
    endpoints: tuple[ReuseportGroup, ...]
    file: File | None = None

    def describe(self) -> list[str]:
        """Return a description of each endpoint: `127.0.0.1:9000 (tcp)`."""
        if self.file is not None:
            return [f"unix:{self.file.path} (unix)"]
        firsts = [group[0] for group in self.endpoints]
        return [f"{describe(sock)} ({'unix' if sock.family == socket.AF_UNIX else 'tcp'})" for sock in firsts]

    def sockets(self) -> list[socket.socket]:
        return [sock for group in self.endpoints for sock in group]

    @property
    def passed(self) -> bool:
        """Whether a parent or systemd has bound it. Then it is repaired, but never rebound or shut down."""
        return self.requested.startswith(("fd:", "systemd"))

    def shut_down(self) -> None:
        """Have the kernel refuse connections, whichever processes hold the sockets, unless a parent has bound them."""
        if not self.passed:
            for sock in self.sockets():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Damage:
    """What a process that shares a listening socket has changed on it."""

    address: str
    listener: Listener
    shut_down: bool
    """It was shut down, and listens again."""
    options: tuple[str, ...]
    """The settings that were changed."""
    unrepaired: tuple[str, ...]
    """Those of them that could not be restored."""


@dataclass(slots=True)
class _Expected:
    """The state of a socket before any worker had it."""

    name: Any
    """The result of getsockname(2) while it listens."""
    settings: Snapshot


class Listeners:
    """All listening sockets of this process. `close` it in the end; a worker calls `close_unused_in_worker` instead.

    `ownership` decides whether `close` unlinks `inherited` and newly bound socket files.
    """

    def __init__(self, inherited: Iterable[Listener] = ()) -> None:
        self._listeners = list(inherited)
        self._inherited = frozenset(self._listeners)
        self.ownership = FileOwnership.PROVISIONAL if self._inherited else FileOwnership.OWNER
        self._options = ListenOptions()
        """As of the last `apply_options`, or the first `bind`."""
        self._systemd: SystemdSockets | None = SystemdSockets()
        """None once the server runs: sockets can be claimed at the start only."""
        self._expected: dict[socket.socket, _Expected] = {}
        self._replaced: set[Listener] = set()
        """Damaged listeners that were rebound. Workers may still hold them; they are not repaired any more."""
        self._record_state()

    # --- binding ------------------------------------------------------------------------------------------------------

    def bind(self, addresses: Sequence[Address], options: ListenOptions) -> tuple[Listener, ...]:
        """Return a listener for each of `addresses`, in this order. Reuse those that are bound, and bind the others.

        Raises BindError or ConfigError, and then nothing has changed. Listeners that are not in
        `addresses` stay open until `close_except`.

        After the first call a service is running. From then on raises ConfigError for a host name, because looking it
        up may block. So it does for descriptors of a parent or of systemd, because their numbers may be in use here.
        """
        left = list(self._listeners)
        bound: list[Listener] = []
        with contextlib.ExitStack() as undo:
            for address in addresses:
                listener = next((each for each in left if each.requested == _requested(address)), None)
                if listener is None:
                    if self._systemd is None:
                        _reject_while_running(address)
                    listener = self._bind(address, options, bound)
                    undo.callback(self._close, listener)
                else:
                    left.remove(listener)
                    if options.sharing is not Sharing.NONE and not _shares_port(listener):
                        why = f"{listener.requested} was bound without it; restart"
                        raise ConfigError(f"--reuse-port: {why}", option="--reuse-port")
                bound.append(listener)
            undo.pop_all()
        if self._systemd is not None:
            self._options, self._systemd = options, None
        self._listeners = bound + left
        self._record_state()
        return tuple(bound)

    def bind_control(self, path: str, backlog: int) -> Listener:
        """Return the control socket, which only its owner may use; keep one that was inherited. Raises BindError."""
        requested = f"control:{path}"
        for listener in self._listeners:
            if listener.requested == requested:
                return listener
        listener = _bind_unix(requested, path, ListenOptions(backlog, mode=0o600))
        self._listeners.append(listener)
        return listener

    def apply_options(
        self, listeners: Sequence[Listener], addresses: Sequence[Address], options: ListenOptions
    ) -> None:
        """Apply the options that can change on a bound socket: the queue length, and a socket file's mode and group."""
        self._options = options
        for address, listener in zip(addresses, listeners, strict=True):
            if isinstance(address, FdAddress | SystemdAddress):
                continue
            for sock in listener.sockets():
                sock.listen(options.backlog)
                if sock in self._expected:
                    expected = self._expected[sock]
                    expected.settings = {**expected.settings, **snapshot_backlog(sock)}
            if isinstance(address, UnixAddress) and listener.file is not None:
                listener.file.set_access(address.mode, options.gid)

    def _bind(self, address: Address, options: ListenOptions, earlier: Sequence[Listener]) -> Listener:
        try:
            return self._bind_address(address, options)
        except BindError as exc:
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress):
                if address.port in _ports(earlier):
                    raise BindError(exc.address, exc.errno, "another --bind of this command has it") from exc
                if address.port in _ports(self._listeners):
                    cure = "this server has it for another --bind; remove that one and reload first"
                    raise BindError(exc.address, exc.errno, cure) from exc
            raise

    def _bind_address(self, address: Address, options: ListenOptions) -> Listener:
        requested = _requested(address)
        match address:
            case FdAddress():
                return _ungrouped(requested, [from_fd(address.fd)])
            case SystemdAddress():
                return _ungrouped(requested, self._systemd.claim(address.name) if self._systemd is not None else [])
            case UnixAddress():
                return _bind_unix(requested, address.path, replace(options, mode=address.mode))
        try:
            if options.sharing is Sharing.NONE:
                return _ungrouped(requested, bind_sockets(address.port, address.host, backlog=options.backlog))
            first = _ungrouped(requested, bind_shared_port(address.port, address.host, options))
        except socket.gaierror as exc:
            reason = f"the host name cannot be resolved: {reason_of(exc)}"
            raise BindError(requested, errno.EADDRNOTAVAIL, reason) from exc
        with contextlib.ExitStack() as undo:
            undo.callback(self._close, first)
            endpoints: list[ReuseportGroup] = []
            for endpoint in first.endpoints:
                group = [endpoint[0]]
                for _ in range(1, options.group_size):
                    group.append(bind_sibling(endpoint[0], options))
                    undo.callback(group[-1].close)
                endpoints.append(tuple(group))
            undo.pop_all()
        return replace(first, endpoints=tuple(endpoints))

    # --- repairing ----------------------------------------------------------------------------------------------------

    def _record_state(self) -> None:
        for listener in self._listeners:
            for sock in listener.sockets():
                if sock not in self._expected and listener not in self._replaced:
                    self._expected[sock] = _Expected(sock.getsockname(), snapshot(sock))

    def repair(self) -> list[Damage]:
        """Relisten on sockets that another process has shut down, restore changed settings, and return the damage."""
        found = [
            self._repair(listener, sock, self._expected[sock])
            for listener in self._listeners
            for sock in listener.sockets()
            if sock in self._expected
        ]
        return [damage for damage in found if damage.shut_down or damage.options]

    def _repair(self, listener: Listener, sock: socket.socket, expected: _Expected) -> Damage:
        length = expected.settings.get("backlog")
        backlog = length if isinstance(length, int) else self._options.backlog
        shut_down = relisten(sock, expected.name, backlog)
        options, unrepaired = restore(sock, expected.settings)
        if not listener.passed and _is_tcp(sock) and detach_program(sock):
            options += ("SO_ATTACH_REUSEPORT_CBPF",)
        if listener.passed and unrepaired:
            # It cannot be rebound either. Accept the new state, so that the damage is reported only once.
            expected.settings = snapshot(sock)
        return Damage(describe(sock), listener, shut_down, options, unrepaired)

    def rebind(self, listener: Listener) -> Listener:
        """Bind new sockets to the addresses of a listener that cannot be repaired. Raises BindError.

        The old one stays open until `close_except`, because workers may still be forked with it.
        """
        fresh = self._rebind_tcp(listener) if listener.file is None else self._rebind_unix(listener, listener.file)
        self._listeners.insert(self._listeners.index(listener), fresh)
        self._replaced.add(listener)
        for sock in listener.sockets():
            self._expected.pop(sock, None)
        self._record_state()
        return fresh

    def _rebind_tcp(self, listener: Listener) -> Listener:
        with contextlib.ExitStack() as undo:
            endpoints: list[ReuseportGroup] = []
            for group in listener.endpoints:
                fresh = []
                for sock in group:
                    fresh.append(bind_replacement(sock, self._expected[sock].name, self._options))
                    undo.callback(fresh[-1].close)
                endpoints.append(tuple(fresh))
            undo.pop_all()
        return replace(listener, endpoints=tuple(endpoints))

    def _rebind_unix(self, listener: Listener, file: File) -> Listener:
        """Bind a new socket in place of the old file, with the mode and the group that it has."""
        try:
            found = file.stat()
        except OSError as exc:
            raise BindError(f"unix:{file.path}", exc.errno or 0) from exc
        file.remove()
        mode = stat.S_IMODE(found.st_mode)
        fresh = _bind_unix(listener.requested, file.path, replace(self._options, mode=mode))
        if fresh.file is not None:
            fresh.file.set_access(mode, found.st_gid)
        return fresh

    # --- what there is ------------------------------------------------------------------------------------------------

    def all(self) -> tuple[Listener, ...]:
        """Return all listeners, the control socket included."""
        return tuple(self._listeners)

    def missing_files(self) -> list[str]:
        """Return the paths of unix sockets whose files have been removed or replaced."""
        return [each.file.path for each in self._listeners if each.file is not None and not each.file.exists()]

    # --- closing ------------------------------------------------------------------------------------------------------

    def close_except(self, wanted: Iterable[Listener]) -> None:
        """Close the listeners that share no socket with `wanted`, and remove their files if this process owns them."""
        kept = {sock for listener in wanted for sock in listener.sockets()}
        for listener in self._listeners[:]:
            if not kept.intersection(listener.sockets()):
                self._listeners.remove(listener)
                self._close(listener)

    def close_unused_in_worker(self, wanted: Iterable[Listener]) -> None:
        """Close a worker's copies of the sockets that are not in `wanted`. Leave the files, which it does not own."""
        kept = {sock for listener in wanted for sock in listener.sockets()}
        for listener in self._listeners:
            for sock in listener.sockets():
                if sock not in kept:
                    sock.close()

    def close(self, but: Listener | None = None, shared: bool = False) -> None:
        """Close all listeners except `but`, and remove the files of unix sockets that this process owns.

        Unless another supervisor has them (`shared`), shut down those that were bound here. Otherwise the kernel would
        go on accepting if a process that a handler has forked still holds one.
        """
        if self.ownership is FileOwnership.OWNER and not shared:
            for listener in self._listeners:
                if listener is not but:
                    listener.shut_down()
        self.close_except(() if but is None else (but,))

    def _close(self, listener: Listener) -> None:
        for sock in listener.sockets():
            self._expected.pop(sock, None)
            sock.close()
        self._replaced.discard(listener)
        if listener.file is not None and self.ownership.owns(listener in self._inherited):
            listener.file.remove()


def _bind_unix(requested: str, path: str, options: ListenOptions) -> Listener:
    sock, file = bind_with_file(path, options)
    return Listener(requested, ((sock,),), file)


def _reject_while_running(address: Address) -> None:
    if isinstance(address, FdAddress | SystemdAddress):
        reject("--bind", str(address), "can be used at the start only; restart")
    if isinstance(address, TCPAddress) and address.host not in (None, "localhost") and not _is_numeric(address.host):
        why = "a host name is not looked up while the server runs, because that may take long; write a numeric address"
        reject("--bind", str(address), f"{why}, or upgrade")


def _is_numeric(host: str | None) -> bool:
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return False
    return True


def _ungrouped(requested: str, sockets: Iterable[socket.socket]) -> Listener:
    return Listener(requested, tuple((sock,) for sock in sockets))


def _requested(address: Address) -> str:
    """Return what identifies a listener: two unix addresses that differ in their mode only are the same one."""
    return f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _ports(listeners: Iterable[Listener]) -> set[int]:
    return {sock.getsockname()[1] for listener in listeners for sock in listener.sockets() if _is_tcp(sock)}


def _shares_port(listener: Listener) -> bool:
    tcp = [sock for sock in listener.sockets() if _is_tcp(sock)]
    return all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in tcp)
