"""Read version 1 of the PROXY protocol, a line of text (haproxy.org/download/3.2/doc/proxy-protocol.txt, 2.1)."""

from __future__ import annotations

import ipaddress
import re

from .address_text import ipv6_text
from .proxy_header import ProxyAddress, ProxyHeader
from .proxy_tlvs import ProxyHeaderError

#: Bytes of the line with its CRLF.
LINE_LIMIT = 107
_OCTET = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PORT = rb"(?:6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{1,3}|[0-9])"
#: All that inet_ntop(3) writes is that short, also an IPv4 address inside.
_IPV6_LIMIT = 39
#: The form only: `ipaddress` judges the address.
_IPV6 = rb"[0-9A-Fa-f:.]{1,%d}" % _IPV6_LIMIT


def _letters(text: bytes) -> list[bytes]:
    return [re.escape(text[at : at + 1]) for at in range(len(text))]


_IPV4_PARTS = [_OCTET, rb"\.", _OCTET, rb"\.", _OCTET, rb"\.", _OCTET]
_END_PARTS = [b" ", _PORT, b" ", _PORT, b"\r", b"\n"]
_TCP4_PARTS = [*_letters(b"PROXY TCP4 "), *_IPV4_PARTS, b" ", *_IPV4_PARTS, *_END_PARTS]
_TCP6_PARTS = [*_letters(b"PROXY TCP6 "), _IPV6, b" ", _IPV6, *_END_PARTS]
_UNKNOWN_PARTS = [*_letters(b"PROXY UNKNOWN"), rb"(?: [^\r\n]*)?", b"\r", b"\n"]


def _beginnings(parts: list[bytes]) -> bytes:
    """Return the pattern of all beginnings: each part is there only behind the one before it.

    Every beginning of an octet, a port and an address is one too, so that a part itself needs no beginnings.
    """
    pattern = b""
    for part in reversed(parts):
        pattern = b"(?:%b%b)?" % (part, pattern)
    return pattern


_BEGUN = re.compile(b"|".join(_beginnings(parts) for parts in (_TCP4_PARTS, _TCP6_PARTS, _UNKNOWN_PARTS)))
_NO_IPV6 = "the line has an IPv6 address that is none"
#: What an IPv6 address that has begun can be completed by, if by anything.
_ENDINGS = ("", "0", ":", "::", "0.0", "0.0.0", ".0", ".0.0", ".0.0.0")


def scan_v1(data: bytes) -> ProxyHeader | None:
    """Return the header at the start of `data`; None while it is incomplete.

    Raises ProxyHeaderError for the first byte that a line cannot have, and for one that is longer than 107 bytes.
    """
    begun = data[:LINE_LIMIT]
    end = begun.find(b"\n") + 1
    line = begun[:end] if end else begun
    if _BEGUN.fullmatch(line) is None:
        raise ProxyHeaderError("the line is not one of version 1")
    fields = line.rstrip(b"\r\n").split(b" ")
    if end:
        return _header(fields, end)
    if fields[1:2] == [b"TCP6"]:
        _check_begun(fields[2:4], len(fields) > 4)
    if len(line) == LINE_LIMIT:
        raise ProxyHeaderError(f"the line does not end within {LINE_LIMIT} bytes")
    return None


def _check_begun(addresses: list[bytes], complete: bool) -> None:
    for index, address in enumerate(addresses):
        endings = ("",) if complete or index + 1 < len(addresses) else _ENDINGS
        if not any(_parse_ipv6(address, ending) for ending in endings):
            raise ProxyHeaderError(_NO_IPV6)


def _parse_ipv6(address: bytes, ending: str = "") -> bytes | None:
    """Return the 16 bytes of the address, completed by `ending`; None if it is none."""
    text = address.decode("ascii") + ending
    if len(text) > _IPV6_LIMIT:
        return None
    try:
        return ipaddress.IPv6Address(text).packed
    except ValueError:
        return None


def _header(fields: list[bytes], length: int) -> ProxyHeader:
    if fields[1] == b"UNKNOWN":
        return ProxyHeader(1, "PROXY", length=length)
    _, family, source, destination, from_port, to_port = fields
    address = _ipv4 if family == b"TCP4" else _ipv6
    return ProxyHeader(1, "PROXY", address(source, from_port), address(destination, to_port), length=length)


def _ipv4(address: bytes, port: bytes) -> ProxyAddress:
    return address.decode("ascii"), int(port)


def _ipv6(address: bytes, port: bytes) -> ProxyAddress:
    packed = _parse_ipv6(address)
    if packed is None:
        raise ProxyHeaderError(_NO_IPV6)
    return ipv6_text(packed), int(port), 0, 0
