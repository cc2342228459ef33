"""What a server tells of one of its open connections, for what watches or ends it.

A value only; `connection.py` and `protocol_connection.py` fill it in.
"""

from __future__ import annotations

from typing import NamedTuple


class OpenConnection(NamedTuple):
    """One open connection. Its age is counted on the clock of the loop."""

    number: int
    """Unique among the connections of this server."""
    fd: int
    """-1 once the socket is closed, while its handler still runs."""
    address: object
    """The peer's, as accept(2) gave it, or as its proxy told it."""
    phase: str
    """One of `core.console_protocol.PHASES`."""
    accepted_at: float
    unsent: int
    """Bytes that the handler has written and the kernel has not taken."""
    tls: str
    """The version; "" in the clear."""
    proxy: object = None
    """The address of the proxy that told the peer's; None without one."""
