"""What counts as one peer: an IPv4 address, or an IPv6 network of 64 bits, which one customer gets whole (RFC 6177).

Pure: a socket address goes in, a key comes out.
"""

from __future__ import annotations

import ipaddress

_IPV4_MAPPED = "::ffff:"


def peer_key(address: object) -> bytes | None:
    """Return the key of the peer with this address, as accept(2) gave it; None for a unix socket, which has none."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return None
    host = address[0]
    if ":" not in host:
        return host.encode()
    # An IPv4 peer of a socket that accepts both families must count together with the same peer on an IPv4 socket.
    if host.startswith(_IPV4_MAPPED) and "." in host:
        return host.removeprefix(_IPV4_MAPPED).encode()
    try:
        return ipaddress.IPv6Address(host.partition("%")[0]).packed[:8]
    except ValueError:
        return host.encode()
