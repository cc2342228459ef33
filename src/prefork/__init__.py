"""prefork: the pre-forking, non-blocking TCP server. The names in `__all__` are the public ones; nothing else is.

They are imported when they are first asked for, so that `import prefork` costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import serve
    from .config import TLS, Limits
    from .errors import (
        BindError,
        ConfigError,
        ConnectionOverflow,
        ConnectionTimedOut,
        LineTooLong,
        ListenerFailed,
        PreforkError,
        ServiceError,
        StreamBusy,
    )
    from .net.acceptor import add_accept_handler
    from .net.server import TCPServer
    from .net.stream import Stream
    from .parent.fork_processes import fork_processes
    from .system.cpus import cpu_count
    from .system.sockets import bind_sockets
    from .system.unix_sockets import bind_unix_socket
    from .system.worker_info import current_worker, task_id

__version__ = "0.1.0"

_HOMES = {
    "TLS": "config",
    "BindError": "errors",
    "ConfigError": "errors",
    "ConnectionOverflow": "errors",
    "ConnectionTimedOut": "errors",
    "Limits": "config",
    "LineTooLong": "errors",
    "ListenerFailed": "errors",
    "PreforkError": "errors",
    "ServiceError": "errors",
    "Stream": "net.stream",
    "StreamBusy": "errors",
    "TCPServer": "net.server",
    "add_accept_handler": "net.acceptor",
    "bind_sockets": "system.sockets",
    "bind_unix_socket": "system.unix_sockets",
    "cpu_count": "system.cpus",
    "current_worker": "system.worker_info",
    "fork_processes": "parent.fork_processes",
    "serve": "assembly",
    "task_id": "system.worker_info",
}

__all__ = [
    "TLS",
    "BindError",
    "ConfigError",
    "ConnectionOverflow",
    "ConnectionTimedOut",
    "Limits",
    "LineTooLong",
    "ListenerFailed",
    "PreforkError",
    "ServiceError",
    "Stream",
    "StreamBusy",
    "TCPServer",
    "__version__",
    "add_accept_handler",
    "bind_sockets",
    "bind_unix_socket",
    "cpu_count",
    "current_worker",
    "fork_processes",
    "serve",
    "task_id",
]


if "PREFORK_HANDOVER" in os.environ:
    # Started by an upgrade. What it has passed on must not reach a program that is started before we serve.
    from .system.handover import mark_cloexec

    mark_cloexec()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'prefork' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
