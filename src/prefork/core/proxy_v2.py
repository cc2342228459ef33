"""Read version 2 of the PROXY protocol, which is binary (haproxy.org/download/3.2/doc/proxy-protocol.txt, 2.2)."""

from __future__ import annotations

import struct

from .address_text import ipv4_text, ipv6_text
from .crc32c import crc32c
from .proxy_header import ProxyAddress, ProxyHeader
from .proxy_tlvs import CRC32C, CRC32C_SIZE, ProxyHeaderError, TLVs, parse_tlvs

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
#: Signature, version and command, family and transport, and the size of what follows.
HEAD = struct.Struct("!12sBBH")
#: Of what follows the first 16 bytes: more would be memory that a peer fills before it is known.
BLOCK_LIMIT = 4096
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31
#: Of no family, and yet a stream: nginx says so of a client on a unix socket.
_UNSPEC_STREAM = 0x01
_DATAGRAMS = (0x02, 0x12, 0x22, 0x32)
UNIX_PATH_SIZE = 108
PORTS = struct.Struct("!HH")
_ADDRESS_SIZE = {
    UNSPEC: 0,
    _UNSPEC_STREAM: 0,
    TCP4: 2 * 4 + PORTS.size,
    TCP6: 2 * 16 + PORTS.size,
    UNIX: 2 * UNIX_PATH_SIZE,
}


def scan_v2(data: bytes) -> ProxyHeader | None:
    """Return the header at the start of `data`; None while it is incomplete.

    Raises ProxyHeaderError as soon as its first 16 bytes are wrong, or once it is complete, for its addresses and TLVs.
    """
    if data[: len(SIGNATURE)] != SIGNATURE[: len(data)]:
        raise ProxyHeaderError("the signature of version 2 is wrong")
    if len(data) < HEAD.size:
        _check_begun(data)
        return None
    _, command, kind, size = HEAD.unpack_from(data)
    _check_command(command)
    if command == PROXY:
        _check_kind(kind)
    if size > BLOCK_LIMIT:
        raise ProxyHeaderError(f"the header says that it is longer than {BLOCK_LIMIT} bytes behind its first 16")
    if command == PROXY and size < _ADDRESS_SIZE[kind]:
        raise ProxyHeaderError("the header is too short for its addresses")
    end = HEAD.size + size
    if len(data) < end:
        return None
    if command == LOCAL or kind in (UNSPEC, _UNSPEC_STREAM):
        # Where addresses would end is not known, so that there is nothing to read: the block is skipped as it is.
        return ProxyHeader(2, "LOCAL" if command == LOCAL else "PROXY", length=end)
    source, destination = _addresses(data, kind)
    start = HEAD.size + _ADDRESS_SIZE[kind]
    tlvs: TLVs = ()
    if start < end:
        tlvs = parse_tlvs(data, start, end)
        _check_sum(data, start, end, tlvs)
    return ProxyHeader(2, "PROXY", source, destination, tlvs, end)


def _check_begun(data: bytes) -> None:
    # A peer that is wrong here may never send the 16th byte: tell it at once and not when its time is over.
    if len(data) > len(SIGNATURE):
        _check_command(data[12])
    if len(data) > len(SIGNATURE) + 1 and data[12] == PROXY:
        _check_kind(data[13])


def _check_command(command: int) -> None:
    if command >> 4 != 2:
        raise ProxyHeaderError("the binary header is not of version 2")
    if command not in (LOCAL, PROXY):
        raise ProxyHeaderError("the command is neither LOCAL nor PROXY")


def _check_kind(kind: int) -> None:
    if kind in _DATAGRAMS:
        raise ProxyHeaderError("the header describes datagrams, on a connection")
    if kind not in _ADDRESS_SIZE:
        raise ProxyHeaderError("the family of addresses, or the transport, is unknown")


def _addresses(data: bytes, kind: int) -> tuple[ProxyAddress, ProxyAddress]:
    at = HEAD.size
    if kind == UNIX:
        middle = at + UNIX_PATH_SIZE
        return _path(data[at:middle]), _path(data[middle : middle + UNIX_PATH_SIZE])
    size = 4 if kind == TCP4 else 16
    from_port, to_port = PORTS.unpack_from(data, at + 2 * size)
    source, destination = data[at : at + size], data[at + size : at + 2 * size]
    if kind == TCP4:
        return (ipv4_text(source), from_port), (ipv4_text(destination), to_port)
    return (ipv6_text(source), from_port, 0, 0), (ipv6_text(destination), to_port, 0, 0)


def _path(field: bytes) -> bytes:
    # The name of an abstract socket may contain NULs (unix(7)); a path ends at the first, and rubbish may follow it.
    return field.rstrip(b"\0") if field.startswith(b"\0") else field.partition(b"\0")[0]


def _check_sum(data: bytes, start: int, end: int, tlvs: TLVs) -> None:
    at = start
    for kind, value in tlvs:
        at += 3 + len(value)
        if kind == CRC32C:
            cleared = data[: at - CRC32C_SIZE] + bytes(CRC32C_SIZE) + data[at:end]
            if crc32c(cleared) != int.from_bytes(value, "big"):
                raise ProxyHeaderError("the CRC32C of the header is wrong")
