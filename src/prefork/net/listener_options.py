"""The TCP options of connections, which a worker sets on their listening socket: they inherit them (tcp(7)).

Those that the supervisor sets for all workers are in `system/listen_options.py`.
"""

from __future__ import annotations

import socket

from ..config import Limits

#: Keepalive probes without an answer until the kernel gives up a peer, and the seconds between them.
_PROBES = 4
_PROBE_INTERVAL = 15


def set_tcp_options(sock: socket.socket, limits: Limits, counts_unsent: bool) -> None:
    """Set the options of a connection, or of all connections on their listener, which saves a call for each.

    `counts_unsent`: the write timeout of what the kernel does not take is kept by the connection itself, as streams do.
    """
    tcp = socket.IPPROTO_TCP
    # With Nagle's algorithm the last segment of a corked answer waits for the peer's delayed acknowledgement, 40 ms.
    sock.setsockopt(tcp, socket.TCP_NODELAY, 1)
    silence = 0
    if limits.keepalive is not None and hasattr(socket, "TCP_KEEPIDLE"):
        idle = max(1, min(int(limits.keepalive), 32767))
        interval = max(1, min(_PROBE_INTERVAL, int(limits.keepalive / _PROBES)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(tcp, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(tcp, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(tcp, socket.TCP_KEEPCNT, _PROBES)
        silence = idle + _PROBES * interval
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # For bytes that the kernel has taken and the peer has not acknowledged: no deadline of ours sees them. It also
        # takes the place of TCP_KEEPCNT: a peer that has been silent for longer is given up at the first probe without
        # an answer. Where it is shorter than all probes take, one lost packet ends an idle connection. A protocol has
        # to bear that, because nothing else than this ends its wait for a peer that does not read.
        milliseconds = int(max(limits.write_timeout, silence if counts_unsent else 0) * 1000)
        sock.setsockopt(tcp, socket.TCP_USER_TIMEOUT, max(1, min(milliseconds, 2**31 - 1)))
