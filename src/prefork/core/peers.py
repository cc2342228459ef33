"""What counts as one peer: an IPv4 address, or an IPv6 network of 64 bits, which one customer has whole (RFC 6177).

Pure: a socket's address goes in, a key comes out.
"""

from __future__ import annotations

import ipaddress

_MAPPED = "::ffff:"


def peer_key(address: object) -> bytes | None:
    """The key of the peer with this address, as `accept` gives it; None for what has none (unix sockets)."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return None
    host = address[0]
    if ":" not in host:
        return host.encode()
    # An IPv4 peer of a socket that takes both families: the same peer.
    if host.startswith(_MAPPED) and "." in host:
        return host.removeprefix(_MAPPED).encode()
    try:
        return ipaddress.IPv6Address(host.partition("%")[0]).packed[:8]
    except ValueError:
        return host.encode()
