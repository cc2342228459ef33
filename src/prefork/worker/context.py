"""What a worker is given: by its generation, by the fork, and by the program that it was forked from.

Values only. They are put together in `assembly/`; what a worker does with them is in `main.py`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..config import Settings
from ..core.ended_connection import EndedConnection
from ..events import Emit, HeldBack
from ..system.credentials import Identity
from ..system.fork_context import ForkContext
from ..system.listeners import BoundAddress
from ..system.scoreboard import Row
from ..system.tls_contexts import TLSContexts
from ..system.tls_files import TLSFiles


class ConnectionLog(Protocol):
    """Writes a line for each connection that has ended; `close` writes what is left."""

    def __call__(self, ended: EndedConnection) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What all workers of one generation get."""

    settings: Settings
    listeners: tuple[BoundAddress, ...]
    tls: TLSContexts | None
    """What connections speak TLS with; None: they do not."""
    tls_files: TLSFiles | None
    """What the contexts take into use before a worker of this generation is forked."""
    identity: Identity | None
    """The user to become before the service is loaded; None: the supervisor's."""
    directory: str
    """The current directory of a worker, from which the service is loaded, without symbolic links."""

    def endpoints(self) -> list[tuple[socket.socket, ...]]:
        """Return the sockets of each address: one that all workers share, or with --reuse-port one for each worker."""
        return [sockets for listener in self.listeners for sockets in listener.endpoints]

    def sockets(self) -> list[socket.socket]:
        return [sock for listener in self.listeners for sock in listener.sockets()]

    def bound_sockets(self) -> list[socket.socket]:
        """Return the listening sockets that prefork has bound; the rest were passed on by another program."""
        return [sock for listener in self.listeners if not listener.bound_elsewhere for sock in listener.sockets()]


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Everything that one worker needs to serve. Its slot and its generation are in `fork`."""

    fork: ForkContext
    config: GenerationConfig
    row: Row
    """The worker's own row on the scoreboard, the only one that it can write."""
    target: object
    """The service, or the text that names it."""
    emit: Emit
    held_back: HeldBack
    """What the log of this process has to say later."""
    make_access_log: Callable[[asyncio.AbstractEventLoop], ConnectionLog] | None
    """Makes the access log of a loop; None: there is none."""
    reopen_logs: Callable[[], object]
    variables: Mapping[str, str] = field(default_factory=dict)
    """What the environment of a program is given, besides what tells it which worker it is."""
    asked: tuple[BoundAddress, ...] = ()
    """The addresses that a program has had bound, besides those of the configuration."""
