"""Write the header of the PROXY protocol, of either version, from addresses and TLVs.

Pure: which addresses and facts a connection has is known in `net/proxy_out.py`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

from .address_text import MAPPED, ipv6_text
from .crc32c import crc32c
from .proxy_tlvs import CRC32C, CRC32C_SIZE, join_tlvs, parse_tlvs
from .proxy_v2 import (
    BLOCK_LIMIT,
    HEAD,
    LOCAL,
    PORTS,
    PROXY,
    SIGNATURE,
    TCP4,
    TCP6,
    UNIX,
    UNIX_PATH_SIZE,
    UNSPEC,
)

IPAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"
#: A host and its port, or the path of a unix socket.
Endpoint: TypeAlias = "tuple[IPAddress, int] | bytes"


def endpoint(address: object) -> Endpoint:
    """Return an address as getpeername(2), or a `ProxyHeader`, has it. Raises ValueError for anything else.

    An IPv4 address inside one of IPv6, as a listener for both families shows it, becomes the IPv4 address.
    """
    if isinstance(address, str | bytes):
        path = address.encode("utf-8", "surrogateescape") if isinstance(address, str) else address
        if len(path) > UNIX_PATH_SIZE:
            raise ValueError(f"the path of a unix socket has at most {UNIX_PATH_SIZE} bytes")
        return path
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4 or not isinstance(address[0], str):
        raise ValueError("an address is (host, port, ...) or the path of a unix socket")
    host, port = address[:2]
    if not isinstance(port, int) or not 0 <= port <= 0xFFFF:
        raise ValueError("a port is a number from 0 to 65535")
    # The interface of a link-local address means nothing on another host.
    found = ipaddress.ip_address(host.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found, port


def write_v1(ends: tuple[Endpoint, Endpoint] | None) -> bytes:
    """Return the line of version 1 for a source and a destination: UNKNOWN if one is no IP address."""
    source, destination = ends if ends is not None else (b"", b"")
    if isinstance(source, bytes) or isinstance(destination, bytes):
        return b"PROXY UNKNOWN\r\n"
    version = max(source[0].version, destination[0].version)
    hosts = f"{source[0]} {destination[0]}"
    if version == 6:
        hosts = f"{ipv6_text(_as_ipv6(source[0]).packed)} {ipv6_text(_as_ipv6(destination[0]).packed)}"
    return f"PROXY TCP{version} {hosts} {source[1]} {destination[1]}\r\n".encode("ascii")


def write_v2(ends: tuple[Endpoint, Endpoint] | None, tlvs: Sequence[tuple[int, bytes]], with_checksum: bool) -> bytes:
    """Return the header of version 2: LOCAL without ends, and if only one of them is a unix socket.

    HAProxy writes LOCAL for the latter as well, and HAProxy and go-proxyproto refuse PROXY without a family. A CRC32C
    among `tlvs` is left out, because it is that of another header. Raises ValueError for TLVs that a receiver would
    refuse, and for a header that is longer than our own receiver accepts.
    """
    command, kind, addresses = _block(ends)
    kept = [(each, value) for each, value in tlvs if each != CRC32C]
    if with_checksum:
        kept.append((CRC32C, bytes(CRC32C_SIZE)))
    block = addresses + join_tlvs(kept)
    parse_tlvs(block, len(addresses), len(block))
    if len(block) > BLOCK_LIMIT:
        raise ValueError(f"the TLVs are too long: a header has at most {BLOCK_LIMIT} bytes behind its first 16")
    header = HEAD.pack(SIGNATURE, command, kind, len(block)) + block
    return header[:-CRC32C_SIZE] + crc32c(header).to_bytes(CRC32C_SIZE, "big") if with_checksum else header


def _block(ends: tuple[Endpoint, Endpoint] | None) -> tuple[int, int, bytes]:
    """Return the command, the byte of the family, and the addresses."""
    if ends is None or isinstance(ends[0], bytes) != isinstance(ends[1], bytes):
        return LOCAL, UNSPEC, b""
    source, destination = ends
    if isinstance(source, bytes) or isinstance(destination, bytes):
        return PROXY, UNIX, b"".join(path.ljust(UNIX_PATH_SIZE, b"\0") for path in ends if isinstance(path, bytes))
    ports = PORTS.pack(source[1], destination[1])
    if source[0].version == destination[0].version == 4:
        return PROXY, TCP4, source[0].packed + destination[0].packed + ports
    return PROXY, TCP6, _as_ipv6(source[0]).packed + _as_ipv6(destination[0]).packed + ports


def _as_ipv6(address: IPAddress) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(MAPPED + address.packed)
