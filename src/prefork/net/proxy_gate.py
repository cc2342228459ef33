"""What a server behind proxies does with a connection that it has accepted, until it serves the client.

A peer that is no proxy is closed, and of the others the header is read first. How it is read is in
proxy_header_reader.py, and everything else that a server does in base_server.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from ..core.account import CloseReason
from ..core.proxy_protocol import ProxyHeader
from ..core.proxy_trust import ProxyPolicy
from ..errors import OutOfResourcesError
from .admission import UNTRUSTED, Admission, Peer, Refusal
from .handlers import Handler
from .observers import Observers
from .proxy_header_reader import ProxyHeaderReader
from .server_state import ServerState

if TYPE_CHECKING:
    from .connection import Connection


class GatedServer(Protocol):
    """The part of a server that its gate needs. It is private, because only the gate uses it from outside."""

    observers: Observers
    _admission: Admission
    _handler: Handler
    _ssl_context: ssl.SSLContext | None
    _shared: ServerState | None
    _connections: dict[Connection, Peer]
    _no_connections: asyncio.Event

    def _serve(self, sock: socket.socket, address: object, header: ProxyHeader | None = None) -> None: ...
    def _refuse(self, sock: socket.socket, address: object, refusal: Refusal) -> None: ...
    def _connection_ended(self, connection: Connection) -> None: ...
    def _resume(self) -> None: ...


class ProxyGate:
    """Lets the connections of trusted proxies pass to `server`, each once its PROXY header is read."""

    def __init__(self, server: GatedServer, policy: ProxyPolicy) -> None:
        self._server = server
        self._policy = policy

    def serve(self, sock: socket.socket, address: object) -> None:
        """Serve a connection that was accepted from `address`. Until its header is there, it counts for no peer."""
        server = self._server
        assert server._shared is not None
        peer = server._admission.commit(None)
        if peer is not None and isinstance(peer, Refusal):
            server._refuse(sock, address, peer)
            return
        if not self._policy.trusted.trusts(address):
            server._admission.release(peer)
            server._refuse(sock, address, Refusal(UNTRUSTED, CloseReason.PROXY_UNTRUSTED))
            return
        local = server.observers.local_address(sock)
        reader = ProxyHeaderReader(sock, address, local, server._shared, self._policy.accept, self._header_read)
        server._connections[reader] = peer
        server._no_connections.clear()
        reader.start(server._shared, server._handler, server._ssl_context)

    def _header_read(self, reader: ProxyHeaderReader, header: ProxyHeader | None) -> None:
        """Have the connection of the client take the place of `reader`, unless that has ended without a header."""
        server = self._server
        if header is None:
            server._connection_ended(reader)
            return
        sock, address = reader.release()
        del server._connections[reader]
        others = len(server._connections)
        # It is counted as refused for lack of memory; the next accept sees whether there still is none.
        with contextlib.suppress(OutOfResourcesError):
            server._serve(sock, address, header)
        if len(server._connections) == others:
            # It was refused, or has ended already.
            server._resume()
        if not server._connections:
            server._no_connections.set()


def claimed(address: object, header: ProxyHeader | None) -> tuple[object, object]:
    """Return the peer's address as `header` tells it, and that of the proxy; without a header the real one and None."""
    if header is None:
        return address, None
    return (address if header.source is None else header.source), address
