"""What a server tells of a connection that has ended, for the access log and for subscribers of the service."""

from __future__ import annotations

from typing import NamedTuple

from .account import CloseReason


class EndedConnection(NamedTuple):
    """One connection that has ended. Addresses are as the kernel gave them; a peer chooses that of its unix socket."""

    number: int
    """Unique among the connections of its server; 0 for one that was not opened."""
    address: object
    """The peer's."""
    local: object
    """The local address, as the peer addressed it; None if it is not known any more."""
    seconds: float
    """From accept to the end."""
    received: int
    """Bytes, as they came over the wire."""
    sent: int
    tls: str
    """The version; "" in the clear."""
    reason: CloseReason
    proxy: object = None
    """The address of the proxy that told the peer's; None without one."""
