"""Version 2 of the PROXY protocol: commands and families, lengths, TLVs and the checksum, against the specification."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.crc32c import crc32c
from prefork.core.proxy_protocol import LENGTH_LIMIT, Accept, ProxyHeader, ProxyHeaderError, scan
from prefork.core.proxy_tlvs import join_tlvs

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX = 0x11, 0x21, 0x31
FROM4, TO4 = ("203.0.113.7", 51234), ("10.0.0.1", 443)
ADDRESSES4 = bytes([203, 0, 113, 7, 10, 0, 0, 1]) + struct.pack("!HH", 51234, 443)
#: Enough for any address.
BLOCK = bytes(216)
SSL, CRC32C, UNIQUE_ID = 0x20, 0x03, 0x05


def header(command: int, kind: int, block: bytes, length: int | None = None) -> bytes:
    """Return a header with this block; `length` makes it tell another size."""
    return SIGNATURE + struct.pack("!BBH", command, kind, len(block) if length is None else length) + block


def tcp4(*tlvs: tuple[int, bytes]) -> bytes:
    """Return a good header of IPv4 with these TLVs."""
    return header(PROXY, TCP4, ADDRESSES4 + join_tlvs(tlvs))


def accepted(data: bytes) -> ProxyHeader:
    """Return the header, which must be complete, and the same for both settings, and whatever follows it."""
    found = scan(data, Accept.V2)
    assert found is not None
    assert scan(data + data, Accept.ANY) == found
    return found


def refused(data: bytes) -> str:
    """Return the reason for which it is refused, with the first byte that settles it."""
    with pytest.raises(ProxyHeaderError) as caught:
        scan(data, Accept.ANY)
    return str(caught.value)


def model(command: int, kind: int) -> str:
    """Return what the specification's tables say of a stream with this 13th and 14th byte."""
    if command not in (0x20, 0x21):
        return "refused"
    if command == 0x20:
        return "skipped"
    # UDP (x2) does not come on a stream. A family without a transport is not in the table of 2.2: no proxy sends it.
    return {0x00: "skipped", 0x01: "skipped", 0x11: "ipv4", 0x21: "ipv6", 0x31: "unix"}.get(kind, "refused")


def test_each_of_the_65536_commands_and_families_is_what_the_specification_says() -> None:
    expected = {
        "skipped": (None, None),
        "ipv4": (("0.0.0.0", 0), ("0.0.0.0", 0)),
        "ipv6": (("::", 0, 0, 0), ("::", 0, 0, 0)),
        "unix": (b"", b""),
    }
    sizes = {"skipped": 216, "ipv4": 12, "ipv6": 36, "unix": 216}
    for command in range(256):
        for kind in range(256):
            verdict = model(command, kind)
            head = header(command, kind, BLOCK[: sizes.get(verdict, 216)])
            try:
                found = scan(head, Accept.V2)
            except ProxyHeaderError:
                assert verdict == "refused", (command, kind)
                continue
            assert found is not None
            assert (found.source, found.destination) == expected[verdict], (command, kind)
            assert found.command == ("PROXY" if command & 1 else "LOCAL")
            assert (found.version, found.length, found.tlvs) == (2, len(head), ())


@pytest.mark.parametrize("bad", [header(0x11, TCP4, BLOCK), header(0x22, TCP4, BLOCK), header(PROXY, 0x41, BLOCK)])
def test_a_wrong_command_or_family_is_refused_at_its_byte(bad: bytes) -> None:
    at = 14 if bad[12] == PROXY else 13
    assert scan(bad[: at - 1], Accept.ANY) is None
    assert refused(bad[:at]) == refused(bad)


@pytest.mark.parametrize("kind", [0x02, 0x12, 0x22, 0x32])
def test_datagrams_are_refused_on_a_stream(kind: int) -> None:
    assert refused(header(PROXY, kind, BLOCK)) == "the header describes datagrams, on a connection"


def test_each_byte_of_the_signature_counts() -> None:
    for at, right in enumerate(SIGNATURE):
        for wrong in {0, 0xFF, right ^ 1, right ^ 0x20} - {right}:
            bad = SIGNATURE[:at] + bytes([wrong])
            refused(bad)
            refused(bad + tcp4()[at + 1 :])


def test_each_version_is_refused_where_the_other_is_expected() -> None:
    for begun in (b"P", b"PROXY UNKNOWN\r\n"):
        with pytest.raises(ProxyHeaderError, match="begin like version 1"):
            scan(begun, Accept.V2)
    for begun in (b"\r", tcp4()):
        with pytest.raises(ProxyHeaderError, match="begin like version 2"):
            scan(begun, Accept.V1)


def test_bytes_without_a_header_are_refused_at_the_first() -> None:
    assert scan(b"", Accept.ANY) is scan(b"", Accept.V1) is scan(b"", Accept.V2) is None
    assert refused(b"\x16") == refused(b"\x16\x03\x01\x02\x00") == "there is no header: the bytes begin like TLS"
    assert refused(b"G") == refused(b"GET / HTTP/1.1\r\n") == refused(b"\n") == refused(b"\xff") == "there is no header"


def test_addresses_are_data_of_which_none_is_refused() -> None:
    assert accepted(tcp4()) == ProxyHeader(2, "PROXY", FROM4, TO4, (), 28)
    every = accepted(header(PROXY, TCP4, b"\xff" * 12))
    assert (every.source, every.destination) == (("255.255.255.255", 65535), ("255.255.255.255", 65535))
    source, destination = ipaddress.IPv6Address("2001:db8::7"), ipaddress.IPv6Address("::ffff:192.0.2.33")
    found = accepted(header(PROXY, TCP6, source.packed + destination.packed + struct.pack("!HH", 1, 0)))
    assert found.source == ("2001:db8::7", 1, 0, 0)
    assert found.destination == ("::ffff:192.0.2.33", 0, 0, 0)


@given(st.lists(st.sampled_from([0, 0, 0, 1, 0xA, 0xFFFF]), min_size=8, max_size=8))
def test_the_longest_run_of_zeros_in_an_ipv6_address_is_left_out(groups: list[int]) -> None:
    address = ipaddress.IPv6Address(struct.pack("!8H", *groups))
    found = accepted(header(PROXY, TCP6, address.packed * 2 + bytes(4)))
    text = f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else address.compressed
    assert (found.source, found.destination) == ((text, 0, 0, 0), (text, 0, 0, 0))


@pytest.mark.parametrize(
    ("field", "path"),
    [
        (b"/run/app.sock", b"/run/app.sock"),
        (b"/" * 108, b"/" * 108),
        (b"/run/app.sock\0rubbish", b"/run/app.sock"),
        (b"/\xff\xfe\r\n", b"/\xff\xfe\r\n"),
        (b"", b""),
        (b"\0" + b"a" * 107, b"\0" + b"a" * 107),
        (b"\0a\0b", b"\0a\0b"),
    ],
)
def test_a_path_of_a_unix_socket_is_bytes(field: bytes, path: bytes) -> None:
    found = accepted(header(PROXY, UNIX, field.ljust(108, b"\0") + b"/to".ljust(108, b"\0")))
    assert (found.source, found.destination) == (path, b"/to")
    found = accepted(header(PROXY, UNIX, b"/from".ljust(108, b"\0") + field.ljust(108, b"\0")))
    assert (found.source, found.destination) == (b"/from", path)


@pytest.mark.parametrize("kind", [0x00, TCP4, TCP6, UNIX, 0x12, 0x41, 0xFF])
@pytest.mark.parametrize(
    "block", [b"", b"\xff", ADDRESSES4, bytes(36), b"\x03\x00\x04\xff\xff\xff\xff", b"\xff" * 4096]
)
def test_the_block_of_local_is_skipped_whatever_it_is(kind: int, block: bytes) -> None:
    data = header(LOCAL, kind, block)
    assert accepted(data) == ProxyHeader(2, "LOCAL", length=len(data))


@pytest.mark.parametrize("block", [b"", b"\xff", ADDRESSES4, b"\x03\x00\x04\xff\xff\xff\xff", b"\xff" * 4096])
def test_the_block_of_an_unspecified_family_is_skipped_whatever_it_is(block: bytes) -> None:
    # 0x01 is what nginx says of a client on a unix socket.
    for kind in (0x00, 0x01):
        data = header(PROXY, kind, block)
        assert accepted(data) == ProxyHeader(2, "PROXY", length=len(data))


@pytest.mark.parametrize(("kind", "size"), [(TCP4, 12), (TCP6, 36), (UNIX, 216)])
def test_a_length_below_that_of_the_addresses_is_refused_before_they_come(kind: int, size: int) -> None:
    for length in range(size):
        assert refused(header(PROXY, kind, b"", length)) == "the header is too short for its addresses"
        assert refused(header(PROXY, kind, BLOCK, length)) == "the header is too short for its addresses"
    assert scan(header(PROXY, kind, b"", size), Accept.V2) is None


@pytest.mark.parametrize("command", [LOCAL, PROXY])
@pytest.mark.parametrize("kind", [0, TCP4])
def test_a_length_above_4096_is_refused_before_the_bytes_come(command: int, kind: int) -> None:
    for length in (4097, 8192, 65535):
        assert "longer than 4096 bytes" in refused(header(command, kind, b"", length))
    longest = header(command, kind, ADDRESSES4 + join_tlvs([(0xE0, bytes(4096 - 12 - 3))]))
    assert accepted(longest).length == len(longest) == LENGTH_LIMIT


GOOD = [
    tcp4(),
    tcp4((1, b"h2"), (2, b"example.org"), (4, b""), (UNIQUE_ID, b"x" * 128), (0x30, b"blue"), (0xE0, b"")),
    header(PROXY, TCP6, bytes(36)),
    header(PROXY, UNIX, bytes(216) + join_tlvs([(SSL, bytes(5))])),
    header(LOCAL, 0, b""),
    header(LOCAL, 0xFF, b"\xff" * 20),
    header(PROXY, 0, b"\xff" * 20),
]


def test_every_beginning_of_a_header_is_a_beginning() -> None:
    for good in GOOD:
        for cut in range(len(good)):
            assert scan(good[:cut], Accept.V2) is scan(good[:cut], Accept.ANY) is None, cut


def test_the_bytes_behind_a_header_are_not_looked_at() -> None:
    for good in GOOD:
        for payload in (b"\0", b"\xff" * 5000, good, b"PROXY UNKNOWN\r\n", b"\x16\x03\x01"):
            found = scan(good + payload, Accept.V2)
            assert found == scan(good, Accept.V2)
            assert found is not None
            assert found.length == len(good)


def test_tlvs_are_bytes_in_their_order_and_have_names() -> None:
    tlvs = (
        (1, b"h2"),
        (2, b"b\xfccher.example"),
        (4, b"padding"),
        (4, b""),
        (UNIQUE_ID, b"\0" * 128),
        (0x30, b"blue"),
        (0xE0, b"\0\0\0\0\0\0\0\x09"),
        (0xEA, b"\x01vpce-08d2bf15fac5001c9"),
        (0xEA, b"\x02something else"),
        (0xEE, b"\x01\x78\x56\x34\x12"),
        (0xFF, b""),
        (0, b"\0"),
    )
    found = accepted(tcp4(*tlvs))
    assert found.tlvs == tlvs
    assert (found.alpn, found.authority, found.unique_id) == (b"h2", b"b\xfccher.example", bytes(128))
    assert (found.netns, found.google_psc_connection_id) == (b"blue", bytes([0, 0, 0, 0, 0, 0, 0, 9]))
    assert found.aws_vpc_endpoint_id == b"vpce-08d2bf15fac5001c9"
    assert found.azure_private_endpoint_id == bytes.fromhex("78563412")
    assert found.ssl is None
    assert not found.crc32c
    assert hash(found) == hash(accepted(tcp4(*tlvs)))


def test_a_header_without_tlvs_has_none_of_their_facts() -> None:
    for found in (accepted(tcp4()), accepted(tcp4((0x7F, b"x"), (0xEA, b""), (0xEA, b"\x02x"), (0xEE, b"\x02")))):
        named = (found.alpn, found.authority, found.unique_id, found.netns, found.ssl, found.google_psc_connection_id)
        assert {*named, found.aws_vpc_endpoint_id, found.azure_private_endpoint_id} == {None}


def test_of_an_applications_tlv_that_is_there_twice_neither_is_believed() -> None:
    found = accepted(tcp4((0xEA, b"\x01one"), (0xEA, b"\x01two"), (0xE0, b"1"), (0xE0, b"2")))
    assert len(found.tlvs) == 4
    assert found.aws_vpc_endpoint_id is found.google_psc_connection_id is None


@pytest.mark.parametrize("kind", [1, 2, 3, 5, SSL, 0x30])
def test_a_registered_tlv_that_is_there_twice_is_refused(kind: int) -> None:
    value = bytes(5) if kind == SSL else bytes(4)
    assert refused(tcp4((kind, value), (4, b""), (kind, value))) == "a TLV that is allowed once is there twice"


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (b"\x01", "the header ends inside the head of a TLV"),
        (b"\x01\0", "the header ends inside the head of a TLV"),
        (b"\x01\0\0\x01", "the header ends inside the head of a TLV"),
        (b"\x01\0\x01", "a TLV is longer than what is left of the header"),
        (b"\x01\xff\xff", "a TLV is longer than what is left of the header"),
        (b"\x01\0\x02h2\x02\0\x05hos", "a TLV is longer than what is left of the header"),
        (join_tlvs([(UNIQUE_ID, bytes(129))]), "the unique id in the header has more than 128 bytes"),
        (join_tlvs([(CRC32C, bytes(3))]), "the CRC32C in the header is not four bytes"),
        (join_tlvs([(CRC32C, bytes(5))]), "the CRC32C in the header is not four bytes"),
        (join_tlvs([(CRC32C, b"")]), "the CRC32C in the header is not four bytes"),
        (join_tlvs([(SSL, b"")]), "the TLV of TLS in the header is too short"),
        (join_tlvs([(SSL, bytes(4))]), "the TLV of TLS in the header is too short"),
        (join_tlvs([(SSL, bytes(6))]), "the header ends inside the head of a TLV"),
        (join_tlvs([(SSL, bytes(5) + b"\x21\0\x02x")]), "a TLV is longer than what is left of the header"),
        (join_tlvs([(SSL, bytes(5) + b"\x22\0\0\x22\0\0")]), "a TLV that is allowed once is there twice"),
    ],
)
def test_malformed_tlvs_are_refused(behind: bytes, reason: str) -> None:
    data = header(PROXY, TCP4, ADDRESSES4 + behind)
    assert refused(data) == refused(data + bytes(100)) == reason
    assert all(scan(data[:cut], Accept.V2) is None for cut in range(len(data)))


def test_the_tlv_of_tls_has_the_facts_of_the_client() -> None:
    inner = [(0x21 + at, b"value %d" % at) for at in range(8)] + [(0x7F, b"new"), (0x7F, b"newer")]
    found = accepted(tcp4((SSL, struct.pack("!BI", 0x07, 0) + join_tlvs(inner)))).ssl
    assert found is not None
    assert (found.client, found.verify, found.used, found.verified) == (7, 0, True, True)
    assert found.tlvs == tuple(inner)
    names = "version common_name cipher sig_alg key_alg group sig_scheme client_certificate"
    assert [getattr(found, name) for name in names.split()] == [value for _, value in inner[:8]]


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [(1, 0, False), (0, 0, False), (3, 0, True), (5, 0, True), (7, 0, True), (7, 1, False), (3, 0xFFFFFFFF, False)],
)
def test_a_client_is_verified_only_with_a_certificate(client: int, verify: int, verified: bool) -> None:
    found = accepted(tcp4((SSL, struct.pack("!BI", client, verify)))).ssl
    assert found is not None
    assert (found.used, found.verified) == (bool(client & 1), verified)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        # RFC 3720, B.4.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_checksum_is_that_of_the_rfc(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


def with_checksum(*tlvs: tuple[int, bytes]) -> bytes:
    """Return a header of IPv4 whose TLV of type 3 has the right checksum."""
    blank = tcp4(*tlvs)
    return tcp4(*((kind, crc32c(blank).to_bytes(4, "big") if kind == CRC32C else value) for kind, value in tlvs))


def test_a_right_checksum_is_accepted_wherever_it_stands_and_covers_only_the_header() -> None:
    for tlvs in (
        [(CRC32C, bytes(4))],
        [(CRC32C, bytes(4)), (1, b"h2")],
        [(2, b"example.org"), (CRC32C, bytes(4)), (4, b"")],
    ):
        data = with_checksum(*tlvs)
        assert accepted(data).crc32c
        assert scan(data + b"payload", Accept.ANY) == accepted(data)


def test_a_header_with_a_checksum_and_one_wrong_bit_is_refused() -> None:
    good = with_checksum((2, b"example.org"), (CRC32C, bytes(4)), (4, b"abc"))
    assert refused(tcp4((CRC32C, bytes(4)))) == "the CRC32C of the header is wrong"
    for at in range(12, len(good)):
        for bit in range(8):
            bad = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            try:
                found = scan(bad, Accept.V2)
            except ProxyHeaderError:
                continue
            # LOCAL and the unspecified family skip it; a greater length waits; another type is no checksum.
            assert found is None or found.source is None or not found.crc32c, (at, bit)


pairs = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8)


@given(pairs, st.binary(max_size=10))
def test_tlvs_come_back_as_they_were_written_or_are_refused(tlvs: list[tuple[int, bytes]], payload: bytes) -> None:
    data = tcp4(*tlvs)
    single = [kind for kind, _ in tlvs if kind in (1, 2, 3, 5, SSL, 0x30)]
    try:
        found = scan(data + payload, Accept.ANY)
    except ProxyHeaderError:
        assert len(set(single)) < len(single) or {CRC32C, SSL} & set(single)
        return
    assert found is not None
    assert found.tlvs == tuple(tlvs)
    assert found.length == len(data)


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
    st.integers(0, 300),
)
def test_changed_and_cut_headers_are_read_or_wait_or_are_refused(
    good: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    changed = bytearray(good)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    try:
        found = scan(bytes(changed[:cut]), Accept.ANY)
    except ProxyHeaderError as exc:
        assert exc.args[0].isascii()
        return
    # The header is never longer than the bytes that were given, and its length is what it says itself.
    assert found is None or (
        found.length <= cut and (found.version == 1 or found.length == 16 + changed[14] * 256 + changed[15])
    )
