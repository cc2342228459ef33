"""Where the live view gets its readings from, and how it ends a connection.

Blocking: it is called in a thread of its own, for one request at a time. Only this file of `top` knows a socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.control_protocol import Request, decode_reply, encode_request
from ...errors import ConfigError, ServiceError
from ...system import control_client
from .facts import Connection, Connections, Snapshot, read_status

#: Seconds to wait for one reply.
TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at a server has found. `connections` and `facts` are None if nothing asked for them."""

    snapshot: Snapshot
    connections: Connections | None = None
    facts: Mapping[str, Any] | None = field(default=None)


class Source(Protocol):
    """A running server. Every method raises ConfigError or ServiceError if there is no answer."""

    def read(self, connections: bool, selected: Connection | None) -> Reading: ...
    def kick(self, connection: Connection) -> str: ...


class ControlSource:
    """Asks a running server on its control socket.

    `find` returns the path of the socket, and is called for each reading, because a server that was started again may
    have another one.
    """

    def __init__(self, find: Callable[[], str]) -> None:
        self._find = find

    def read(self, connections: bool, selected: Connection | None) -> Reading:
        """Return the status, and what the kernel knows of a selected connection."""
        reply = self._ask(Request("status"))
        snapshot = read_status(reply, time.monotonic(), time.time())
        return Reading(snapshot, Connections() if connections else None)

    def kick(self, connection: Connection) -> str:
        """End a connection; return in words what was done."""
        raise ServiceError("this server cannot end a connection on request")

    def _ask(self, request: Request) -> Mapping[str, Any]:
        path = self._find()
        line = control_client.request(path, encode_request(request), TIMEOUT)
        try:
            reply = decode_reply(line)
        except ValueError:
            raise ConfigError("what listens there is no prefork control socket") from None
        if not reply["ok"]:
            raise ServiceError(str(reply.get("error", "the server rejected the request")))
        return reply
