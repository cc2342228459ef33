"""Which connections a kick is for: addresses with and without a port, and networks, against the address of a peer.

Pure: texts and socket addresses go in, an answer comes out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class PeerFilter:
    """The peers that a client names. Raises ValueError, which names the text that is no peer."""

    def __init__(self, peers: Iterable[str]) -> None:
        self._endpoints: set[tuple[bytes, int]] = set()
        self._networks: list[_Network] = []
        for peer in peers:
            host, port = _split(peer)
            if port is None:
                self._networks.append(_network(peer, host))
            else:
                self._endpoints.add((_packed(peer, host), port))

    @property
    def names_one(self) -> bool:
        """Whether it can only be for one connection: an address with its port."""
        return not self._networks and len(self._endpoints) == 1

    def matches(self, address: object) -> bool:
        """Return whether a peer is one of them; `address` is what accept(2) gave. A unix socket's peer never is."""
        if not isinstance(address, tuple) or len(address) < 2 or not isinstance(address[0], str):
            return False
        try:
            ip = _plain(ipaddress.ip_address(address[0].partition("%")[0]))
        except ValueError:
            return False
        return (ip.packed, address[1]) in self._endpoints or any(ip in network for network in self._networks)

    def matches_text(self, peer: str) -> bool:
        """Return whether a peer is one of them, by its address as text: `10.0.0.1:5000`, `[::1]:5000`."""
        host, port = _split(peer)
        return port is not None and self.matches((host, port))


def _split(peer: str) -> tuple[str, int | None]:
    """Return the host of a text, and its port if it has one: `10.0.0.1:80`, `[::1]:80`; without: `10.0.0.0/8`."""
    host, colon, port = peer.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (host.count(":") == 0 or host.startswith("[")):
        return host.strip("[]"), int(port)
    return peer.strip("[]"), None


def _plain(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an IPv4 address that a socket of IPv6 has as IPv4."""
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def _packed(peer: str, host: str) -> bytes:
    try:
        return _plain(ipaddress.ip_address(host.partition("%")[0])).packed
    except ValueError:
        raise ValueError(f"{peer!r} is no peer: expected ADDRESS:PORT, an address, or a network") from None


def _network(peer: str, host: str) -> _Network:
    try:
        return ipaddress.ip_network(host)
    except ValueError:
        raise ValueError(f"{peer!r} is no peer: expected ADDRESS:PORT, an address, or a network (10.0.0.0/8)") from None
