"""Other parsers of the PROXY protocol, and the reasons for which they may differ from ours: any other is a failure.

`proxy-protocol` (PyPI, 0.11) and aiosmtpd. What they say is told in a form that all three have.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeAlias

import proxyprotocol
from aiosmtpd import proxy_protocol as aiosmtpd
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from prefork.core.proxy_protocol import Accept, ProxyHeader, ProxyHeaderError, scan
from prefork.core.proxy_v2 import UNIX

from . import properties

#: Refused, a beginning, the real addresses, or two addresses that were told.
Told: TypeAlias = "str | tuple[object, object]"
REFUSED, BEGINNING, REAL = "refused", "beginning", "real"


def ours(data: bytes) -> tuple[Told, ProxyHeader | None]:
    """Return what our parser says."""
    found = properties.verdict(data, Accept.ANY)
    if not isinstance(found, ProxyHeader):
        return (REFUSED if found == properties.REFUSED else BEGINNING), None
    if found.source is None:
        return REAL, found
    return (_plain(found.source), _plain(found.destination)), found


def _plain(address: Any) -> object:
    return address if isinstance(address, bytes) else (ipaddress.ip_address(address[0]), address[1])


def proxy_protocol(data: bytes) -> Told:
    """Return what `proxy-protocol` says. It is given what its own reader would read."""
    try:
        if data[:5] == b"PROXY":
            line, newline, _ = data.partition(b"\n")
            return _told(ProxyProtocolV1().unpack(line + newline))
        if len(data) >= 16:
            size = 16 + int.from_bytes(data[14:16], "big")
            return _told(ProxyProtocolV2().unpack(data[:size]))
        return BEGINNING
    except proxyprotocol.ProxyProtocolIncompleteError:
        return BEGINNING
    except Exception as exc:  # it raises a struct.error and a UnicodeDecodeError for some
        return REFUSED if isinstance(exc, ValueError) else f"raised {type(exc).__module__}.{type(exc).__name__}"


def _told(result: Any) -> Told:
    if not result.proxied or not result.source:
        return REAL
    ends = (result.source, result.dest)
    return tuple(each.encode() if isinstance(each, str) else (each[0], each[1]) for each in ends)  # type: ignore[return-value]  # two


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_now(self, size: int) -> bytes:
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def read(self, n: int = -1) -> bytes:
        return self.read_now(n)

    async def readexactly(self, n: int) -> bytes:
        if len(self._data) < n:
            raise EOFError
        return self.read_now(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        at = self._data.find(separator)
        if at < 0:
            raise EOFError
        return self.read_now(at + len(separator))


def smtp(data: bytes) -> Told:
    """Return what aiosmtpd's parser says."""
    begun = _Reader(data)
    signature = begun.read_now(5)
    if len(signature) < 5:
        return BEGINNING
    parse: Coroutine[Any, Any, Any]
    if signature == b"PROXY":
        parse = aiosmtpd._get_v1(begun, signature)
    elif signature == aiosmtpd.V2_SIGNATURE[:5]:
        parse = aiosmtpd._get_v2(begun, signature)
    else:
        return REFUSED
    try:
        parse.send(None)
    except StopIteration as end:
        return _told_by_smtp(end.value)
    except (EOFError, ConnectionError):
        return BEGINNING
    except IndexError:
        return "raised IndexError"
    raise AssertionError("it waits for something else")


def _told_by_smtp(found: Any) -> Told:
    if not found.valid:
        return REFUSED
    if found.command == 0 or found.src_addr is None:
        return REAL
    if isinstance(found.src_addr, bytes):
        return found.src_addr, found.dst_addr
    return (found.src_addr, found.src_port), (found.dst_addr, found.dst_port)


class Comparison:
    """Asks all three, and counts the explained differences."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        # aiosmtpd warns of each header that it refuses.
        logging.disable()

    def check(self, data: bytes) -> None:
        """Raise AssertionError for a difference without an explanation."""
        properties.check(data)
        mine, header = ours(data)
        for name, other in (("proxy-protocol", proxy_protocol(data)), ("aiosmtpd", smtp(data))):
            if mine == other:
                self.counted[f"{name}: the same ({mine if isinstance(mine, str) else 'addresses'})"] += 1
                continue
            why = explain(name, data, mine, other, header)
            assert why is not None, (name, mine, other)
            self.counted[f"{name}: {why}"] += 1

    def report(self) -> str:
        """Return a line for each verdict and each explained difference."""
        return "".join(f"{count:12,}  {why}\n" for why, count in sorted(self.counted.items()))


def explain(name: str, data: bytes, mine: Told, other: Told, header: ProxyHeader | None) -> str | None:
    """Return why the other parser may say `other` where ours says `mine`; None if nothing explains it."""
    if isinstance(other, str) and other.startswith("raised"):
        return f"it {other} for bytes that we {'refuse' if mine == REFUSED else 'read'}"
    if mine != REFUSED:
        return _explain_read(data, other, header)
    if other == BEGINNING:
        return "it waits for more of what we refuse at the first wrong byte"
    reason = _reason(data)
    if reason == "the line is not one of version 1":
        return _explain_line(data)
    return f"it accepts: {reason}" if reason in ACCEPTED[name] else None


_CUT = {"the header ends inside the head of a TLV", "a TLV is longer than what is left of the header"}
_SIZES = {
    "a TLV that is allowed once is there twice",
    "the TLV of TLS in the header is too short",
    "the unique id in the header has more than 128 bytes",
}
_BOTH = {
    *_CUT,
    *_SIZES,
    "the header describes datagrams, on a connection",
    "the family of addresses, or the transport, is unknown",
    "the header says that it is longer than 4096 bytes behind its first 16",
}
#: What we refuse and the other accepts. aiosmtpd reads TLVs only when it is asked, and has no checksum.
ACCEPTED = {
    "proxy-protocol": {*_BOTH, "the line has an IPv6 address that is none", "the line does not end within 107 bytes"},
    "aiosmtpd": {*_BOTH, "the CRC32C of the header is wrong", "the CRC32C in the header is not four bytes"},
}


def _reason(data: bytes) -> str:
    try:
        scan(data, Accept.ANY)
    except ProxyHeaderError as exc:
        return str(exc)
    return ""


def _explain_line(data: bytes) -> str | None:
    line, newline, _ = data.partition(b"\n")
    fields = line.removesuffix(b"\r").split(b" ")
    if len(line + newline) > 107:
        return "it accepts a line of more than 107 bytes"
    if len(fields) < 2:
        return None
    if fields[1] == b"UNKNOWN" and line.count(b"\r") > 1:
        return "it accepts a lone CR behind UNKNOWN"
    if fields[1][:3] == b"TCP" and fields[1] not in (b"TCP4", b"TCP6"):
        return "it accepts other bytes between TCP and the 4 or 6"
    if len(fields) == 6 and not all(_is_number(port) for port in fields[4:]):
        return "it accepts ports that are no decimal numbers, or have leading zeros"
    if any(b"%" in address for address in fields[2:4]):
        return "it accepts an address with a zone"
    if any(b":" in address and len(address) > 39 for address in fields[2:4]):
        return "it accepts an IPv6 address longer than 39 bytes"
    return None


def _is_number(port: bytes) -> bool:
    return port.isdigit() and str(int(port)).encode() == port


def _explain_read(data: bytes, other: Told, header: ProxyHeader | None) -> str | None:
    """Return why the other parser does not read the header, or the beginning, that ours does."""
    if data[12:13] == b"\x20" and other == REFUSED:
        return "it looks at the family or the block of LOCAL, which are to be ignored"
    if header is None or header.version == 1 or header.source is None:
        return None
    if data[13] == UNIX:
        return "it refuses a path of a unix socket that is not ASCII, or keeps what is behind the NUL"
    if header.crc32c and other == REFUSED:
        return "it writes the TLVs again, in their types' order, to take the checksum"
    return None
