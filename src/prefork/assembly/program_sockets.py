"""Bind what a program asks for, once for all workers, and find what is held already.

Which held socket an address stands for is decided in `core/held_addresses.py`; the sockets belong to
`system/listeners.py`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection, Iterable

from ..config import Settings
from ..core.held_addresses import match
from ..core.worker_requests import IPV6, UNIX, BindRequest, Refused
from ..errors import BindError
from ..system.credentials import Identity, as_user
from ..system.held_sockets import held_sockets, is_named
from ..system.listen_options import ListenOptions
from ..system.listeners import BoundAddress, Listeners, is_for_program
from ..system.sockets import bind_exactly, describe, inode
from ..system.unix_sockets import bind_unix_socket, bind_with_file

#: Sockets that a program may have bound, besides those that --bind names.
MAX_PROGRAM_SOCKETS = 64
#: Seconds to wait for a lock on the directory of a unix socket: a hostile worker may hold it, and its siblings wait.
_LOCK_TIMEOUT = 0.02


class ProgramSockets:
    """The sockets that workers of a program share: those of --bind, and those that the program asked for."""

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners

    def bound(self) -> tuple[BoundAddress, ...]:
        """Return what was bound for a program, without what --bind names."""
        found = (each for each in self._listeners.all() if is_for_program(each))
        return tuple(each for each in found if not self._listeners.replaced(each))

    def find(self, request: BindRequest, named: Iterable[BoundAddress]) -> socket.socket | Refused | None:
        """Return the held socket that `request` stands for; None if there is none."""
        held = held_sockets(named, self.bound())
        found = match(request, [each.address for each in held])
        return held[found].sock if isinstance(found, int) else found

    def bind(self, request: BindRequest, settings: Settings, identity: Identity | None) -> socket.socket | Refused:
        """Bind an address for a program, with the rights of its user, or, if --allow-bind names it, of this process."""
        if len(self.bound()) >= MAX_PROGRAM_SOCKETS:
            return Refused(errno.EMFILE, f"a program can have {MAX_PROGRAM_SOCKETS} addresses bound")
        allowed = is_named(settings.allow_bind, request)
        # Not listening yet: a program may only try whether it can bind an address.
        options = ListenOptions(settings.backlog, mode=request.mode, listens=request.family == UNIX)
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


def describe_sockets(listeners: Listeners, inodes: Collection[int]) -> str:
    """Return the addresses of held sockets, as messages name them."""
    found = [describe(sock) for bound in listeners.all() for sock in bound.sockets() if inode(sock) in inodes]
    return " or ".join(found) or "an address that is not held any more"


def _bind(request: BindRequest, options: ListenOptions) -> BoundAddress:
    requested = f"program:{request.key}"
    if request.family != UNIX:
        where = (request.host, request.port)
        address = (*where, 0, request.scope) if request.family == IPV6 else where
        return BoundAddress(requested, ((bind_exactly(request.family, address, request.v6only, options),),))
    if request.host.startswith("\0"):
        return BoundAddress(requested, ((bind_unix_socket(request.host, backlog=options.backlog),),))
    sock, file = bind_with_file(request.host, options, _LOCK_TIMEOUT)
    return BoundAddress(requested, ((sock,),), file)
