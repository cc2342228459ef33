"""Other parsers of the PROXY protocol, and the reasons for which they may differ from ours: any other is a failure.

`proxy-protocol` (PyPI, 0.11) and aiosmtpd. What they say is told in a form that all three have.
"""

from __future__ import annotations

import atexit
import ipaddress
import re
import sys
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeAlias

import proxyprotocol
from aiosmtpd import proxy_protocol as aiosmtpd
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from prefork.core.proxy_protocol import Accept, ProxyHeader

from . import properties

#: Refused, a beginning, the real addresses, or two addresses that were told.
Told: TypeAlias = "str | tuple[object, object]"
REFUSED, BEGINNING, REAL = "refused", "beginning", "real"
_PORTS_ONLY = re.compile(rb"[0-9]+")


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
        return REFUSED if isinstance(exc, ValueError) else f"raised {type(exc).__name__}"


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
        parse = aiosmtpd._get_v1(begun)
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
    """Asks all three, and counts the explained differences, which are printed at the end."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        atexit.register(self._print)

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

    def _print(self) -> None:
        for why, count in sorted(self.counted.items()):
            sys.stderr.write(f"{count:10,}  {why}\n")


def explain(name: str, data: bytes, mine: Told, other: Told, header: ProxyHeader | None) -> str | None:
    """Return why the other parser may say `other` where ours says `mine`; None if nothing explains it."""
    if isinstance(other, str) and other.startswith("raised"):
        return f"it {other} for bytes that we {'refuse' if mine == REFUSED else 'read'}"
    if mine == REFUSED and other == BEGINNING:
        return "it waits for more of what we refuse at the first wrong byte"
    if data[:1] == b"P":
        return _explain_v1(data, mine, other)
    return _explain_v2(name, data, mine, other, header)


def _explain_v1(data: bytes, mine: Told, other: Told) -> str | None:
    line = data.partition(b"\n")[0] + b"\n"
    fields = line.rstrip(b"\r\n").split(b" ")
    if mine != REFUSED:
        return None
    if len(line) > 107:
        return "it accepts a line of more than 107 bytes"
    if line.count(b"\r") > 1 and fields[1:2] == [b"UNKNOWN"]:
        return "it accepts a lone CR"
    if len(fields) == 6 and not all(_is_number(port) for port in fields[4:]):
        return "it accepts ports that are no decimal numbers, or with leading zeros"
    if b"%" in line:
        return "it accepts an address with a zone"
    if any(b":" in address and len(address) > 39 for address in fields[2:4]):
        return "it accepts an IPv6 address longer than 39 bytes"
    return None


def _is_number(port: bytes) -> bool:
    return _PORTS_ONLY.fullmatch(port) is not None and str(int(port)).encode() == port


def _explain_v2(name: str, data: bytes, mine: Told, other: Told, header: ProxyHeader | None) -> str | None:
    if len(data) < 16:
        return None
    command, kind, size = data[12] & 15, data[13], int.from_bytes(data[14:16], "big")
    if mine == REFUSED:
        return _explain_refused(name, data, command, kind, size)
    if command == 0 or kind == 0:
        return "it reads the block of LOCAL, which is to be skipped" if other == REFUSED else None
    if kind == 0x31:
        return "it refuses, or pads, a path of a unix socket"
    if header is not None and header.crc32c and other == REFUSED:
        return "its checksum is of the TLVs in another order, or of one of two"
    return None


def _explain_refused(name: str, data: bytes, command: int, kind: int, size: int) -> str | None:
    if size > 4096:
        return "it has no limit of 4,096 bytes"
    if kind & 15 == 2 and kind >> 4 in (1, 2, 3):
        return "it accepts datagrams on a stream"
    if command == 1 and kind not in (0, 0x11, 0x21, 0x31):
        return "it accepts an unknown family or transport as the real addresses"
    if command == 1 and kind in (0x11, 0x21, 0x31):
        return "it accepts TLVs that are cut short, wrong in size, twice there, or with a wrong checksum"
    return None
