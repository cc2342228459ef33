"""The TCP options of connections, which a worker sets on their listening socket: they inherit them (tcp(7)).

Those that the supervisor sets for all workers are in `system/listen_options.py`.
"""

from __future__ import annotations

import socket

from ..config import Limits

#: Keepalive probes without an answer until the kernel gives up a peer, and the seconds between them.
_PROBES = 4
_PROBE_INTERVAL = 15


def set_tcp_options(listener: socket.socket, limits: Limits) -> None:
    """Set the options of all connections on their listener: they inherit them (tcp(7)), which saves a call for each."""
    tcp = socket.IPPROTO_TCP
    # With Nagle's algorithm the last segment of a corked answer waits for the peer's delayed acknowledgement, 40 ms.
    listener.setsockopt(tcp, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # For bytes that the kernel has taken and the peer has not acknowledged: no deadline of ours sees them.
        listener.setsockopt(tcp, socket.TCP_USER_TIMEOUT, max(1, min(int(limits.write_timeout * 1000), 2**31 - 1)))
    if limits.keepalive is not None and hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(tcp, socket.TCP_KEEPIDLE, max(1, min(int(limits.keepalive), 32767)))
        listener.setsockopt(tcp, socket.TCP_KEEPINTVL, max(1, min(_PROBE_INTERVAL, int(limits.keepalive / _PROBES))))
        listener.setsockopt(tcp, socket.TCP_KEEPCNT, _PROBES)
