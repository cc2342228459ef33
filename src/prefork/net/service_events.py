"""What `prefork.subscribe` tells a service: a closed set of events about the connections of its process.

Values only, which are part of the public interface. `subscribers.py` passes them on; `prefork.events` is what prefork
logs, which is another catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceEvent:
    """Base of the events that a subscriber is told. It ignores classes that it does not know: there may be new ones."""


@dataclass(frozen=True, slots=True)
class ConnectionOpened(ServiceEvent):
    """A connection was accepted, and its handler is about to start. With TLS the handshake comes first."""

    id: int
    """Unique among the connections of its server; `stream.id`."""
    peer: str
    """The peer's address: `203.0.113.7:51234`, `[2001:db8::7]:51234`, `unix`. A peer chooses that of a unix socket."""
    local: str
    """The local address, as the peer addressed it."""
    proxy: str = ""
    """The address of the proxy whose PROXY header told the peer's; "" without one."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed(ServiceEvent):
    """A connection has ended: its socket is closed, and its handler has returned."""

    id: int
    """0 for a connection that was never opened: refused at a limit, or without a PROXY header that it needed."""
    peer: str
    local: str
    """"" if the service subscribed after the connection was accepted."""
    seconds: float
    """From accept to the end."""
    received: int
    """Bytes as they came over the wire."""
    sent: int
    tls: str
    """The version; "" in the clear."""
    reason: str
    """One of the reasons in the account of connections: `done`, `peer_reset`, `idle_timeout` ..."""
    proxy: str = ""
    """The address of the proxy whose PROXY header told the peer's; "" without one."""


@dataclass(frozen=True, slots=True)
class HandlerFailed(ServiceEvent):
    """The handler of a connection raised. `ConnectionClosed` follows."""

    id: int
    peer: str
    exception: BaseException


@dataclass(frozen=True, slots=True)
class Draining(ServiceEvent):
    """A server of this process has stopped accepting, and waits for its connections to end."""
