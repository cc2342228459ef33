"""Own the listening sockets of a server: bound once, kept over reloads, handed to a successor, closed when unused.

There is one owner, in the supervisor. `sockets.py` and `unix_sockets.py` bind; nothing here accepts.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..addresses import Address, FdAddress, SystemdAddress, TCPAddress, UnixAddress
from ..checks import reject
from ..errors import BindError, ConfigError, reason_of
from .file_ownership import FileOwnership
from .listen_options import APPLIED, ListenOptions, Sharing
from .sock_diag import accept_queue
from .socket_activation import SystemdSockets, from_fd
from .socket_snapshot import NEVER_OF_A_PROGRAM, Snapshot, detach_program, repair_settings, snapshot
from .sockets import bind_replacement, bind_resolved, bind_sibling, describe, inode, repair_shutdown, resolve
from .unix_sockets import File, bind_with_file

#: Begins what identifies a listener of a program, the control socket, and the addresses of --metrics and --agent.
_PROGRAM = "program:"
_CONTROL = "control:"
_METRICS = "metrics:"
_AGENT = "agent:"
#: The sockets of one endpoint: one that all workers share, or with SO_REUSEPORT one for each worker (socket(7)).
EndpointSockets = tuple[socket.socket, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BoundAddress:
    """The result of one `--bind`: an endpoint for each address that it resolved to."""

    requested: str
    """The address of the option, without what may change while it is bound."""
    endpoints: tuple[EndpointSockets, ...]
    file: File | None = None

    def describe(self) -> list[str]:
        """Return a description of each endpoint: `127.0.0.1:9000 (tcp)`."""
        if self.file is not None:
            return [f"unix:{self.file.path} (unix)"]
        firsts = [group[0] for group in self.endpoints]
        return [f"{describe(sock)} ({'unix' if sock.family == socket.AF_UNIX else 'tcp'})" for sock in firsts]

    def sockets(self) -> list[socket.socket]:
        return [sock for group in self.endpoints for sock in group]

    def listens(self) -> bool:
        """Return whether all of its sockets listen."""
        return all(map(_listens, self.sockets()))

    @property
    def bound_elsewhere(self) -> bool:
        """Whether a parent or systemd has bound it. Then it is repaired, but never rebound or shut down."""
        return self.requested.startswith(("fd:", "systemd"))

    def shut_down(self) -> None:
        """Have the kernel refuse connections, whichever processes hold the sockets, unless a parent has bound them."""
        if not self.bound_elsewhere:
            for sock in self.sockets():
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Damage:
    """What a process that shares a listening socket has changed on it."""

    address: str
    bound: BoundAddress
    shut_down: bool
    """It was shut down, and listens again."""
    changed: tuple[str, ...]
    """The settings that were changed."""
    unrepaired: tuple[str, ...]
    """Those of them that could not be set back."""


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

    def __init__(self, inherited: Iterable[BoundAddress] = ()) -> None:
        self._bound = list(inherited)
        self._inherited = frozenset(self._bound)
        self.ownership = FileOwnership.PROVISIONAL if self._inherited else FileOwnership.OWNER
        self._options = ListenOptions()
        """As of the last `apply_options`, or the first `bind`."""
        self._systemd = SystemdSockets()
        self.keeps_settings = False
        """Leave the settings of sockets as workers set them, because a program configures its own; but for those that
        no program sets."""
        self._running = False
        """Set by the first `bind`: a service is running, and nothing may block it or take its descriptors."""
        self._expected: dict[socket.socket, _Expected] = {}
        self._replaced: set[BoundAddress] = set()
        """Damaged listeners that were rebound. Workers may still hold them; they are not repaired any more."""
        self._successors: dict[int, int] = {}
        """The inode of what was bound in place of each damaged socket, by its inode."""
        self._record_state()

    # --- binding ------------------------------------------------------------------------------------------------------

    def bind(self, addresses: Sequence[Address], options: ListenOptions) -> tuple[BoundAddress, ...]:
        """Return `addresses` bound, in this order. Reuse those that are bound already.

        Raises BindError or ConfigError, and then nothing has changed. Other bound addresses stay open
        until `close_except`.

        After the first call a service is running. From then on raises ConfigError for a host name, because looking it
        up may block. So it does for descriptors of a parent or of systemd, because their numbers may be in use here.
        """
        left = list(self._bound)
        result: list[BoundAddress] = []
        with contextlib.ExitStack() as undo:
            for address in addresses:
                bound = next((each for each in left if each.requested == _requested(address)), None)
                if bound is None:
                    if self._running:
                        _reject_while_running(address)
                    bound = self._bind(address, options, result)
                    undo.callback(self._close, bound)
                else:
                    left.remove(bound)
                    if options.sharing is not Sharing.NONE and not _shares_port(bound):
                        why = f"{bound.requested} was bound without it; restart"
                        raise ConfigError(f"--reuse-port: {why}", option="--reuse-port")
                result.append(bound)
            undo.pop_all()
        if not self._running:
            self._options, self._running = options, True
        self._bound = result + left
        self._record_state()
        return tuple(result)

    def bind_control(self, path: str, backlog: int) -> BoundAddress:
        """Return the control socket, which only its owner may use; keep one that was inherited. Raises BindError."""
        requested = _CONTROL + path
        for bound in self._bound:
            if bound.requested == requested:
                return bound
        bound = _bind_unix(requested, path, ListenOptions(backlog, mode=0o600))
        self._bound.append(bound)
        return bound

    def bind_metrics(self, address: Address, options: ListenOptions) -> BoundAddress:
        """Return the address of --metrics; keep one that was inherited. Raises BindError."""
        return self._bind_observed(_METRICS, address, options)

    def bind_agent(self, address: Address, options: ListenOptions) -> BoundAddress:
        """Return the address of --agent; keep one that was inherited. Raises BindError."""
        return self._bind_observed(_AGENT, address, options)

    def _bind_observed(self, prefix: str, address: Address, options: ListenOptions) -> BoundAddress:
        requested = prefix + _requested(address)
        for bound in self._bound:
            if bound.requested == requested:
                return bound
        try:
            bound = replace(self._bind_address(address, options), requested=requested)
        except BindError as exc:
            taken = isinstance(address, TCPAddress) and address.port in _ports(self._bound)
            if exc.errno == errno.EADDRINUSE and taken:
                raise BindError(exc.address, exc.errno, "--bind of this command has it") from exc
            raise
        self.add(bound)
        return bound

    def add(self, bound: BoundAddress) -> None:
        """Own another listener, that of a program; it outlives reloads."""
        self._bound.append(bound)
        self._record_state()

    def note_listening(self, number: int) -> str | None:
        """Note that a worker listens on the socket with this inode. Return its address if it was bound for a program,
        "" if --bind names it, and None if it is no socket of the workers': a hostile one may say any number."""
        for bound in self._bound:
            for sock in bound.sockets() if is_for_workers(bound) else ():
                if inode(sock) == number:
                    self._record_state()
                    return describe(sock) if is_for_program(bound) else ""
        return None

    def queues(self) -> list[dict[str, Any]]:
        """Return address, length and limit of the accept queue of each endpoint that workers accept from, with the
        sockets of its group added up."""
        found = []
        for bound in self._bound:
            for group in bound.endpoints if is_for_workers(bound) else ():
                queues = [queue for sock in group if (queue := accept_queue(sock)) is not None]
                if queues:
                    waiting, limit = (sum(each) for each in zip(*queues, strict=True))
                    found.append({"listener": describe(group[0]), "waiting": waiting, "limit": limit})
        return found

    def silence_unused(self, listening: Collection[int]) -> list[str]:
        """Have the kernel refuse connections to the TCP sockets whose inodes are not in `listening`, because no worker
        accepts from them. Return their addresses. A worker that listens on one again makes it listen."""
        silenced = []
        for bound in self._bound:
            for sock in bound.sockets():
                if sock in self._expected and _is_tcp(sock) and inode(sock) not in listening:
                    self._expected.pop(sock)
                    if not bound.bound_elsewhere:
                        with contextlib.suppress(OSError):
                            sock.shutdown(socket.SHUT_RDWR)
                        silenced.append(describe(sock))
        return silenced

    def apply_options(
        self, listeners: Sequence[BoundAddress], addresses: Sequence[Address], options: ListenOptions
    ) -> None:
        """Apply the options that can change on a bound socket, and those of a socket file: its mode and group."""
        self._options = options
        for address, bound in zip(addresses, listeners, strict=True):
            if isinstance(address, FdAddress | SystemdAddress):
                continue
            for sock in bound.sockets():
                if self.keeps_settings and not _listens(sock):
                    # No worker of a program listens on it.
                    continue
                options.apply(sock)
                if sock in self._expected:
                    expected = self._expected[sock]
                    expected.settings = {**expected.settings, **snapshot(sock, APPLIED)}
            if isinstance(address, UnixAddress) and bound.file is not None:
                bound.file.set_access(address.mode, options.gid)

    def _bind(self, address: Address, options: ListenOptions, earlier: Sequence[BoundAddress]) -> BoundAddress:
        try:
            return self._bind_address(address, options)
        except BindError as exc:
            if exc.errno == errno.EADDRINUSE and isinstance(address, TCPAddress):
                if address.port in _ports(earlier):
                    raise BindError(exc.address, exc.errno, "another --bind of this command has it") from exc
                if address.port in _ports(self._bound):
                    cure = "this server has it for another --bind; remove that one and reload first"
                    raise BindError(exc.address, exc.errno, cure) from exc
            raise

    def _bind_address(self, address: Address, options: ListenOptions) -> BoundAddress:
        requested = _requested(address)
        match address:
            case FdAddress():
                return _ungrouped(requested, [from_fd(address.fd)])
            case SystemdAddress():
                return _ungrouped(requested, self._systemd.claim(address.name))
            case UnixAddress():
                return _bind_unix(requested, address.path, replace(options, mode=address.mode))
        try:
            first = _ungrouped(requested, bind_resolved(resolve(address.port, address.host), options))
        except socket.gaierror as exc:
            reason = f"the host name cannot be resolved: {reason_of(exc)}"
            raise BindError(requested, errno.EADDRNOTAVAIL, reason) from exc
        with contextlib.ExitStack() as undo:
            undo.callback(self._close, first)
            endpoints: list[EndpointSockets] = []
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
        for bound in self._bound:
            # No worker has the sockets of --metrics and --agent, so none is damaged by one.
            for sock in bound.sockets() if not bound.requested.startswith((_METRICS, _AGENT)) else ():
                if sock not in self._expected and bound not in self._replaced and _listens(sock):
                    self._expected[sock] = _Expected(sock.getsockname(), snapshot(sock))

    def repair(self) -> list[Damage]:
        """Repair every socket: listen again if it was shut down, set changed settings back. Return the damage."""
        found = [
            self._repair_socket(bound, sock, self._expected[sock])
            for bound in self._bound
            for sock in bound.sockets()
            if sock in self._expected
        ]
        return [damage for damage in found if damage.shut_down or damage.changed]

    def _repair_socket(self, bound: BoundAddress, sock: socket.socket, expected: _Expected) -> Damage:
        length = expected.settings.get("backlog")
        backlog = length if isinstance(length, int) else self._options.backlog
        shut_down = repair_shutdown(sock, expected.name, backlog)
        wanted = expected.settings
        if self.keeps_settings:
            wanted = {name: value for name, value in wanted.items() if name in NEVER_OF_A_PROGRAM}
        changed, unrepaired = repair_settings(sock, wanted)
        if not self.keeps_settings and not bound.bound_elsewhere and _is_tcp(sock) and detach_program(sock):
            changed += ("SO_ATTACH_REUSEPORT_CBPF",)
        if bound.bound_elsewhere and unrepaired:
            # It cannot be rebound either. Accept the new state, so that the damage is reported only once.
            expected.settings = snapshot(sock)
        return Damage(describe(sock), bound, shut_down, changed, unrepaired)

    def rebind(self, bound: BoundAddress) -> BoundAddress:
        """Bind new sockets in place of those that cannot be repaired. Raises BindError.

        The old one stays open until `close_except`, because workers may still be forked with it.
        """
        fresh = self._rebind_tcp(bound) if bound.file is None else self._rebind_unix(bound, bound.file)
        self._bound.insert(self._bound.index(bound), fresh)
        self._replaced.add(bound)
        self._successors.update(zip(map(inode, bound.sockets()), map(inode, fresh.sockets()), strict=True))
        for sock in bound.sockets():
            self._expected.pop(sock, None)
        self._record_state()
        return fresh

    def _rebind_tcp(self, bound: BoundAddress) -> BoundAddress:
        with contextlib.ExitStack() as undo:
            endpoints: list[EndpointSockets] = []
            for group in bound.endpoints:
                fresh = []
                for sock in group:
                    fresh.append(bind_replacement(sock, self._expected[sock].name, self._options))
                    undo.callback(fresh[-1].close)
                endpoints.append(tuple(fresh))
            undo.pop_all()
        return replace(bound, endpoints=tuple(endpoints))

    def _rebind_unix(self, bound: BoundAddress, file: File) -> BoundAddress:
        """Bind a new socket in place of the old file, with the mode and the group that it has."""
        try:
            found = file.stat()
        except OSError as exc:
            raise BindError(f"unix:{file.path}", exc.errno or 0) from exc
        file.remove()
        mode = stat.S_IMODE(found.st_mode)
        fresh = _bind_unix(bound.requested, file.path, replace(self._options, mode=mode))
        if fresh.file is not None:
            fresh.file.set_access(mode, found.st_gid)
        return fresh

    # --- what there is ------------------------------------------------------------------------------------------------

    def all(self) -> tuple[BoundAddress, ...]:
        """Return all listeners, the control socket included."""
        return tuple(self._bound)

    def replaced(self, bound: BoundAddress) -> bool:
        """Return whether it was damaged, and another one bound in its place."""
        return bound in self._replaced

    def current(self, number: int) -> int | None:
        """Return the inode of the socket that workers to come have in place of the one with this inode: itself, unless
        it was damaged. None if there is none."""
        while number in self._successors:
            number = self._successors[number]
        return number if any(inode(sock) == number for bound in self._bound for sock in bound.sockets()) else None

    def missing_files(self) -> list[str]:
        """Return the paths of unix sockets whose files have been removed or replaced."""
        return [each.file.path for each in self._bound if each.file is not None and not each.file.exists()]

    # --- closing ------------------------------------------------------------------------------------------------------

    def close_except(self, wanted: Iterable[BoundAddress]) -> None:
        """Close the listeners that share no socket with `wanted`, and remove their files if this process owns them."""
        kept = {sock for bound in wanted for sock in bound.sockets()}
        for bound in self._bound[:]:
            if not kept.intersection(bound.sockets()):
                self._bound.remove(bound)
                self._close(bound)

    def close_unused_in_worker(self, wanted: Iterable[BoundAddress]) -> None:
        """Close a worker's copies of the sockets that are not in `wanted`. Leave the files, which it does not own."""
        kept = {sock for bound in wanted for sock in bound.sockets()}
        for bound in self._bound:
            for sock in bound.sockets():
                if sock not in kept:
                    sock.close()

    def close(self, but: Collection[BoundAddress] = (), shared: bool = False) -> None:
        """Close all listeners except those of `but`, and remove the files of unix sockets that this process owns.

        Unless another supervisor has them (`shared`), shut down those that were bound here. Otherwise the kernel would
        go on accepting if a process that a handler has forked still holds one.
        """
        if self.ownership is FileOwnership.OWNER and not shared:
            for bound in self._bound:
                if bound not in but:
                    bound.shut_down()
        self.close_except(but)

    def _close(self, bound: BoundAddress) -> None:
        for sock in bound.sockets():
            self._expected.pop(sock, None)
            sock.close()
        self._replaced.discard(bound)
        if bound.file is not None and self.ownership.owns(bound in self._inherited):
            bound.file.remove()


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def is_for_workers(bound: BoundAddress) -> bool:
    """Return whether workers accept from a listener: not from what --control, --metrics and --agent name."""
    return not bound.requested.startswith((_CONTROL, _METRICS, _AGENT))


def is_for_program(bound: BoundAddress) -> bool:
    """Return whether a listener was bound because a program asked for it."""
    return bound.requested.startswith(_PROGRAM)


def program_key(bound: BoundAddress) -> str:
    """Return the key of the request for which a listener of a program was bound."""
    return bound.requested.removeprefix(_PROGRAM)


def _bind_unix(requested: str, path: str, options: ListenOptions) -> BoundAddress:
    sock, file = bind_with_file(path, options)
    return BoundAddress(requested, ((sock,),), file)


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


def _ungrouped(requested: str, sockets: Iterable[socket.socket]) -> BoundAddress:
    return BoundAddress(requested, tuple((sock,) for sock in sockets))


def _requested(address: Address) -> str:
    """Return what identifies a bound address: two unix addresses that differ in their mode only are the same one."""
    return f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _ports(listeners: Iterable[BoundAddress]) -> set[int]:
    return {sock.getsockname()[1] for bound in listeners for sock in bound.sockets() if _is_tcp(sock)}


def _shares_port(bound: BoundAddress) -> bool:
    tcp = [sock for sock in bound.sockets() if _is_tcp(sock)]
    return all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in tcp)
