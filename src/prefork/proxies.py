"""Proxies that may send a PROXY header: `--proxy-protocol`, and the text of `--proxy-from` as values that are checked.

Only values are looked at here. Whether a peer is one of these proxies is decided in `core/proxy_trust.py`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Sequence
from typing import Literal, TypeAlias

from .checks import reject

_OPTION = "--proxy-from"


class AnyProxy(enum.Enum):
    """Proxies that are named by a word, because no network stands for them."""

    UNIX = "unix:"
    """Each process that can connect to a unix socket of the server: it has no address."""
    ANYWHERE = "anywhere"
    """Each peer on TCP. It can claim any address, so this is for a network in which nothing but proxies reaches the
    server."""

    def __str__(self) -> str:
        return self.value


ProxySource: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network | AnyProxy"
_SOURCE_TYPES = (ipaddress.IPv4Network, ipaddress.IPv6Network, AnyProxy)
#: Versions of the PROXY protocol.
ProxyProtocol: TypeAlias = Literal["off", "v1", "v2", "any"]
PROXY_PROTOCOLS = ("off", "v1", "v2", "any")


def check_proxies(protocol: str, proxies: Sequence[object]) -> None:
    """Check that a PROXY header is read from named proxies only, and that it is read if there are some."""
    for each in proxies:
        if not isinstance(each, _SOURCE_TYPES):
            reject(_OPTION, each, "must be a network, an address, unix: or anywhere")
    if protocol != "off" and not proxies:
        reject("--proxy-protocol", protocol, "name the proxies that may send it: --proxy-from 10.0.0.0/8")
    if protocol == "off" and proxies:
        reject(_OPTION, str(proxies[0]), "is of no use without --proxy-protocol v1, v2 or any")


def proxy_sources(texts: object) -> tuple[ProxySource, ...]:
    """Return the proxies that a program names by one text or a list. Raises ConfigError."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence):
        reject(_OPTION, texts, 'must be text, or a list of text, such as "10.0.0.0/8"')
    return tuple(map(parse_proxy_source, listed))


def parse_proxy_source(text: object) -> ProxySource:
    """Return what one value of `--proxy-from` stands for; an address is a network of one. Raises ConfigError.

    A network of IPv4 addresses in IPv6 (`::ffff:10.0.0.0/104`) becomes the IPv4 network, as such peers do.
    """
    if not isinstance(text, str):
        reject(_OPTION, text, "must be text, such as 10.0.0.0/8")
    for word in AnyProxy:
        if text == word.value:
            return word
    if text.startswith("unix:"):
        reject(_OPTION, text, "a proxy on a unix socket has no name of its own: use unix: for all of them")
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        reject(_OPTION, text, _mistake(text))
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    if network.prefixlen == 0:
        reject(
            _OPTION, text, f"trusts every peer, which can then claim any address (if that is meant: {_OPTION} anywhere)"
        )
    return network


def _mistake(text: str) -> str:
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return "must be a network such as 10.0.0.0/8 or 2001:db8::/32, an address, unix: or anywhere"
    return f"has bits beyond its length: is {found} meant?"
