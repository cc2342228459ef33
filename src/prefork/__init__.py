"""prefork: the pre-forking, non-blocking TCP server. The names in `__all__` are the public ones, and no others.

A name is imported when it is first used, so that `import prefork` imports neither asyncio nor ssl.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import metrics as metrics
    from . import otel as otel

    # What type checkers and editors see. tests/meta/test_imports.py compares it with the table below.
    from .assembly.serve import serve as serve
    from .config import TLS as TLS
    from .config import Limits as Limits
    from .core.proxy_header import ProxyHeader as ProxyHeader
    from .core.proxy_tlvs import ProxyTLS as ProxyTLS
    from .errors import BindError as BindError
    from .errors import ConfigError as ConfigError
    from .errors import ConnectionOverflowError as ConnectionOverflowError
    from .errors import ConnectionTimeoutError as ConnectionTimeoutError
    from .errors import LineTooLongError as LineTooLongError
    from .errors import ListenerError as ListenerError
    from .errors import PreforkError as PreforkError
    from .errors import ServiceError as ServiceError
    from .errors import StreamBusyError as StreamBusyError
    from .net.outgoing import connect as connect
    from .net.proxy_out import proxy_header as proxy_header
    from .net.server import TCPServer as TCPServer
    from .net.service_events import ConnectionClosed as ConnectionClosed
    from .net.service_events import ConnectionOpened as ConnectionOpened
    from .net.service_events import Draining as Draining
    from .net.service_events import HandlerFailed as HandlerFailed
    from .net.service_events import ServiceEvent as ServiceEvent
    from .net.stream import Stream as Stream
    from .net.subscribers import subscribe as subscribe
    from .net.timeouts import Timeouts as Timeouts
    from .net.tls import TLSInfo as TLSInfo
    from .parent.fork_processes import fork_processes as fork_processes
    from .system.cpus import cpu_count as cpu_count
    from .system.sockets import bind_sockets as bind_sockets
    from .system.unix_sockets import bind_unix_socket as bind_unix_socket
    from .system.worker_info import WorkerInfo as WorkerInfo
    from .system.worker_info import current_worker as current_worker
    from .system.worker_info import task_id as task_id
    from .worker.accept_handler import add_accept_handler as add_accept_handler
    from .worker.lease import Lease as Lease
    from .worker.lease import lease as lease

_NAMES_BY_MODULE = {
    "assembly.serve": "serve",
    "config": "TLS Limits",
    "core.proxy_header": "ProxyHeader",
    "core.proxy_tlvs": "ProxyTLS",
    "metrics": "metrics",
    "otel": "otel",
    "errors": "BindError ConfigError ConnectionOverflowError ConnectionTimeoutError LineTooLongError ListenerError "
    "PreforkError ServiceError StreamBusyError",
    "worker.accept_handler": "add_accept_handler",
    "worker.lease": "Lease lease",
    "net.outgoing": "connect",
    "net.proxy_out": "proxy_header",
    "net.server": "TCPServer",
    "net.service_events": "ConnectionClosed ConnectionOpened Draining HandlerFailed ServiceEvent",
    "net.stream": "Stream",
    "net.subscribers": "subscribe",
    "net.timeouts": "Timeouts",
    "net.tls": "TLSInfo",
    "parent.fork_processes": "fork_processes",
    "system.cpus": "cpu_count",
    "system.sockets": "bind_sockets",
    "system.unix_sockets": "bind_unix_socket",
    "system.worker_info": "WorkerInfo current_worker task_id",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604  # a table of text


if "PREFORK_HANDOVER" in os.environ:
    # Started by an upgrade: the descriptors it passed on must not be inherited by a program started before we serve.
    from .system.handover import mark_cloexec

    mark_cloexec()


if not TYPE_CHECKING:
    # Hidden from type checkers, otherwise every misspelt name would be an Any.
    def __getattr__(name):
        module = _MODULE_OF.get(name)
        if module is None:
            raise AttributeError(f"module 'prefork' has no attribute {name!r}")
        imported = importlib.import_module(f".{module}", __name__)
        value = imported if module == name else getattr(imported, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
