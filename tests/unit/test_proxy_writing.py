"""The PROXY header that a handler sends: what is written is read back, and what has no header is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork import ProxyHeader, proxy_header
from prefork.core.proxy_protocol import Accept, ProxyHeaderError, scan

V4 = (("203.0.113.7", 51234), ("10.0.0.1", 443))
V6 = (("2001:db8::7", 51234, 0, 0), ("2001:db8::1", 443, 0, 0))


class Connection:
    """What a transport of asyncio says of its connection."""

    def __init__(self, **facts: Any) -> None:
        self.facts: Mapping[str, Any] = facts

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.facts.get(name, default)


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (*V4, b"PROXY TCP4 203.0.113.7 10.0.0.1 51234 443\r\n"),
        (*V6, b"PROXY TCP6 2001:db8::7 2001:db8::1 51234 443\r\n"),
        (V4[0], V6[1], b"PROXY TCP6 ::ffff:203.0.113.7 2001:db8::1 51234 443\r\n"),
        (V6[0], V4[1], b"PROXY TCP6 2001:db8::7 ::ffff:10.0.0.1 51234 443\r\n"),
        (("::ffff:203.0.113.7", 1, 0, 0), ("::ffff:10.0.0.1", 2, 0, 0), b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r\n"),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2", 2, 0, 2), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        ("", "/run/app.sock", b"PROXY UNKNOWN\r\n"),
        (V4[0], "/run/app.sock", b"PROXY UNKNOWN\r\n"),
        ("", V4[1], b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1_is_a_line(source: Any, destination: Any, line: bytes) -> None:
    assert proxy_header((source, destination), version=1) == line
    found = scan(line, Accept.V1)
    assert found is not None
    assert proxy_header((found.source or "", found.destination or ""), version=1) == line


def test_a_connection_of_our_own_and_one_of_two_kinds_are_local() -> None:
    assert proxy_header(None, version=1) == b"PROXY UNKNOWN\r\n"
    assert proxy_header(None) == b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
    for pair in ((V4[0], "/run/app.sock"), ("", V4[1])):
        assert proxy_header(pair) == proxy_header(None)
    for header in (proxy_header(None, tlvs=[(1, b"h2")]), proxy_header(None, crc32c=True)):
        assert scan(header, Accept.V2) == ProxyHeader(2, "LOCAL", length=len(header))


@pytest.mark.parametrize(
    ("source", "destination", "read"),
    [
        (*V4, V4),
        (*V6, V6),
        (V4[0], V6[1], (("::ffff:203.0.113.7", 51234, 0, 0), V6[1])),
        (V6[0], V4[1], (V6[0], ("::ffff:10.0.0.1", 443, 0, 0))),
        ("", "/run/app.sock", (b"", b"/run/app.sock")),
        (b"\0abstract", "/\udcff" + "x" * 106, (b"\0abstract", b"/\xff" + b"x" * 106)),
    ],
)
def test_version_2_is_read_as_it_was_written(source: Any, destination: Any, read: tuple[Any, Any]) -> None:
    header = proxy_header((source, destination))
    assert scan(header, Accept.V2) == ProxyHeader(2, "PROXY", *read, (), len(header))


def test_tlvs_and_a_checksum_follow_the_addresses() -> None:
    tlvs = [(1, b"h2"), (5, b"id"), (0xE0, b"x"), (0xE0, b"y")]
    found = scan(proxy_header(V4, tlvs=tlvs, crc32c=True), Accept.V2)
    assert found is not None
    assert found.tlvs[:-1] == tuple(tlvs)
    assert found.crc32c
    # The checksum of another header is not handed on; a new one is made.
    again = scan(proxy_header(V6, tlvs=found.tlvs), Accept.V2)
    assert again is not None
    assert again.tlvs == tuple(tlvs)
    checked = scan(proxy_header(V6, tlvs=found.tlvs, crc32c=True), Accept.V2)
    assert checked is not None
    assert (checked.crc32c, checked.alpn) == (True, b"h2")


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (("localhost", 1), ("::1", 1)),
        (("1.2.3.4", -1), ("::1", 1)),
        (("1.2.3.4", 65536), ("::1", 1)),
        (("1.2.3.4", "80"), ("::1", 1)),
        (("01.2.3.4", 1), ("::1", 1)),
        (("1.2.3.4",), ("::1", 1)),
        ((1, 2), ("::1", 1)),
        (None, ("::1", 1)),
        ("/" * 109, "/"),
        (b"/" * 109, "/"),
    ],
)
def test_an_address_that_is_none_is_refused(source: Any, destination: Any) -> None:
    for pair in ((source, destination), (destination, source)):
        for version in (1, 2):
            with pytest.raises(ValueError, match=r"."):
                proxy_header(pair, version=version)  # type: ignore[arg-type]  # a loop over both


@pytest.mark.parametrize(
    "tlvs",
    [
        [(256, b"")],
        [(-1, b"")],
        [(0xE0, bytes(65536))],
        [(0xE0, bytes(4096))],
        [(5, bytes(129))],
        [(1, b"h2"), (1, b"h2")],
        [(0x20, b"")],
    ],
)
def test_a_tlv_that_a_receiver_would_refuse_is_refused(tlvs: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        proxy_header(V4, tlvs=tlvs)


def test_version_1_has_no_tlvs_and_other_versions_do_not_exist() -> None:
    with pytest.raises(ValueError, match="neither TLVs nor a checksum"):
        proxy_header(V4, version=1, tlvs=[(1, b"h2")])
    with pytest.raises(ValueError, match="neither TLVs nor a checksum"):
        proxy_header(V4, version=1, crc32c=True)
    with pytest.raises(ValueError, match="version"):
        proxy_header(V4, version=3)  # type: ignore[arg-type]  # what a type checker would tell
    with pytest.raises(ValueError, match="source and destination"):
        proxy_header((*V4, V4))  # type: ignore[arg-type]  # what a type checker would tell


def test_the_addresses_of_a_connection_are_those_that_its_proxy_told() -> None:
    plain = Connection(peername=V4[0], sockname=V4[1])
    assert proxy_header(plain) == proxy_header(V4)
    told = ProxyHeader(2, "PROXY", *V6)
    assert proxy_header(Connection(peername=V6[0], sockname=V4[1], proxy=told)) == proxy_header(V6)
    local = ProxyHeader(2, "LOCAL")
    assert proxy_header(Connection(peername=V4[0], sockname=V4[1], proxy=local)) == proxy_header(V4)


def test_a_connection_whose_addresses_are_gone_has_no_header() -> None:
    for gone in (Connection(), Connection(peername=V4[0]), Connection(sockname=V4[1])):
        with pytest.raises(OSError, match="not connected"):
            proxy_header(gone)


ports = st.integers(0, 65535)
hosts = st.ip_addresses().filter(lambda each: getattr(each, "ipv4_mapped", None) is None).map(str)
paths = st.binary(max_size=108).map(lambda path: path.rstrip(b"\0") if path[:1] == b"\0" else path.partition(b"\0")[0])
ends = st.tuples(st.tuples(hosts, ports), st.tuples(hosts, ports)) | st.tuples(paths, paths)
free_tlvs = st.lists(st.tuples(st.integers(0x40, 255), st.binary(max_size=60)), max_size=5)


@given(ends, st.sampled_from([1, 2]), free_tlvs, st.booleans(), st.data())
def test_what_is_written_is_read_back_and_waits_at_every_cut(
    pair: Any, version: Any, tlvs: list[tuple[int, bytes]], crc32c: bool, data: st.DataObject
) -> None:
    options: dict[str, Any] = {"tlvs": tlvs, "crc32c": crc32c} if version == 2 else {}
    header = proxy_header(pair, version=version, **options)
    cut = data.draw(st.integers(0, len(header) - 1))
    assert scan(header[:cut], Accept.ANY) is None
    found = scan(header + b"payload", Accept.ANY)
    assert found is not None
    assert (found.version, found.length, found.crc32c) == (version, len(header), version == 2 and crc32c)
    if isinstance(pair[0], bytes):
        assert (found.source, found.destination) == (pair if version == 2 else (None, None))
        return
    mixed = len({ipaddress.ip_address(host).version for host, _ in pair}) == 2
    for (host, port), read in zip(pair, (found.source, found.destination), strict=True):
        assert isinstance(read, tuple)
        address = ipaddress.ip_address(read[0])
        if mixed:
            address = getattr(address, "ipv4_mapped", None) or address
        assert (address, read[1]) == (ipaddress.ip_address(host), port)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_the_beginning_of_one_or_refused(data: bytes) -> None:
    for begun in (
        data,
        b"PROXY " + data,
        b"PROXY TCP4 " + data,
        proxy_header(None)[:12] + data,
        proxy_header(V4)[:14] + data,
    ):
        try:
            found = scan(begun, Accept.ANY)
        except ProxyHeaderError:
            continue
        assert found is None or 0 < found.length <= len(begun)
