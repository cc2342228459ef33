"""Decide whether a peer may send a PROXY header: the trust list of `--proxy-from`.

Pure: socket addresses go in, an answer comes out. What a header says is not looked at here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ..proxies import AnyProxy, ProxySource
from .proxy_protocol import Accept

#: Hosts whose answer is kept, because balancers are few and parsing an address costs 2 us.
_MAX_KNOWN = 1024


class TrustedProxies:
    """The peers that may send a PROXY header."""

    __slots__ = ("_any", "_known", "_networks", "_unix")

    def __init__(self, sources: Iterable[ProxySource]) -> None:
        all_sources = list(sources)
        self._any = AnyProxy.ANYWHERE in all_sources
        self._unix = AnyProxy.UNIX in all_sources
        self._networks = [each for each in all_sources if not isinstance(each, AnyProxy)]
        self._known: dict[str, bool] = {}

    def trusts(self, address: object) -> bool:
        """Return whether the peer with this address, as accept(2) gave it, may send a header.

        A peer without an IP address, as on a unix socket, is trusted by `unix:` only. An IPv4 peer of a socket for
        both families (`::ffff:10.0.0.1`) counts as IPv4.
        """
        if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
            return self._unix
        if self._any:
            return True
        host = address[0]
        found = self._known.get(host)
        if found is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            found = self._known[host] = self._contains(host)
        return found

    def _contains(self, host: str) -> bool:
        try:
            ip = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        plain = (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip
        return any(plain in network for network in self._networks)


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """What a server that is behind proxies reads, and from which of them."""

    accept: Accept
    trusted: TrustedProxies


def proxy_policy(protocol: str, sources: Iterable[ProxySource]) -> ProxyPolicy | None:
    """Return what `--proxy-protocol` and `--proxy-from` mean; None for `off`."""
    return None if protocol == "off" else ProxyPolicy(Accept(protocol), TrustedProxies(sources))
