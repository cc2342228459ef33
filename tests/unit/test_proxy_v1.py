"""Version 1 of the PROXY protocol: which lines are a header, which are refused, and at which byte."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.proxy_protocol import Accept, ProxyHeader, ProxyHeaderError, scan

FULL6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

V4 = [
    ("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443", ("192.168.0.1", 56324), ("192.168.0.11", 443)),
    ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", ("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0", ("0.0.0.0", 0), ("0.0.0.0", 0)),
    ("PROXY TCP4 1.1.1.1 2.2.2.2 1000 2000", ("1.1.1.1", 1000), ("2.2.2.2", 2000)),
    ("PROXY TCP4 10.20.30.40 99.100.199.200 9 10", ("10.20.30.40", 9), ("99.100.199.200", 10)),
    ("PROXY TCP4 249.250.255.0 1.2.3.4 59999 60000", ("249.250.255.0", 59999), ("1.2.3.4", 60000)),
    ("PROXY TCP4 1.2.3.4 1.2.3.4 65529 65530", ("1.2.3.4", 65529), ("1.2.3.4", 65530)),
]
V6 = [
    ("PROXY TCP6 ::1 ::2 1 2", "::1", "::2"),
    ("PROXY TCP6 :: :: 1 2", "::", "::"),
    (f"PROXY TCP6 {FULL6} {FULL6} 1 2", FULL6, FULL6),
    (f"PROXY TCP6 {FULL6.upper()} {FULL6} 1 2", FULL6, FULL6),
    ("PROXY TCP6 2001:db8::7 2001:DB8:0:0::8 1 2", "2001:db8::7", "2001:db8::8"),
    ("PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0007 1:2:3:4:5:6:7:8 1 2", "2001:db8::7", "1:2:3:4:5:6:7:8"),
    ("PROXY TCP6 1:: ::1:0:0 1 2", "1::", "::1:0:0"),
    ("PROXY TCP6 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 1 2", "1:2:3:4:5:6:7:0", "0:2:3:4:5:6:7:8"),
    ("PROXY TCP6 fe80::1 ff02::1 1 2", "fe80::1", "ff02::1"),
    # An IPv4 address in one of IPv6 has dots as getpeername gives it, however it was written.
    ("PROXY TCP6 ::ffff:203.0.113.7 ::ffff:cb00:7107 1 2", "::ffff:203.0.113.7", "::ffff:203.0.113.7"),
    ("PROXY TCP6 ::FFFF:0.0.0.0 64:ff9b::192.0.2.33 1 2", "::ffff:0.0.0.0", "64:ff9b::c000:221"),
]
UNKNOWN = [
    "PROXY UNKNOWN",
    "PROXY UNKNOWN ",
    "PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2",
    f"PROXY UNKNOWN {FULL6} {FULL6} 65535 65535",
    "PROXY UNKNOWN 999.x 01 -1 \t\0\x7f\xff",
    "PROXY UNKNOWN TCP4 1.2.3.4",
    "PROXY UNKNOWN PROXY UNKNOWN",
]


def octets(good: str) -> list[str]:
    """Return texts that are no IPv4 address, each wrong in one octet."""
    bad = (
        "",
        " ",
        "01",
        "00",
        "000",
        "001",
        "0x1",
        "1 ",
        "256",
        "260",
        "300",
        "999",
        "1000",
        "-1",
        "+1",
        "1e1",
        "a",
        "\u0661",
    )
    parts = good.split(".")
    return [".".join([*parts[:at], octet, *parts[at + 1 :]]) for octet in bad for at in (0, 3)]


BAD_V4 = [*octets("1.2.3.4"), "1.2.3", "1.2.3.", "1.2.3.4.", ".1.2.3.4", "1.2.3.4.5", "1..2.3", "16909060", "1.2.772"]
BAD_V4 += ["::1", "::ffff:1.2.3.4", "localhost", "1,2.3.4", "1.2.3.4/32", "1.2.3.4%eth0", "[1.2.3.4]", "1.2.3.4:80"]
BAD_V6 = [":", ":::", "1", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3", "::1::", ":1:2:3:4:5:6:7", "1:2:3:4:5:6:7:"]
BAD_V6 += ["12345::", "::00001", "::g", "::1%eth0", "::1%1", "fe80::1%lo", "[::1]", "::1/128", "1.2.3.4", "::1.2.3"]
BAD_V6 += [
    "::1.2.3.256",
    "::1.2.3.04",
    "::1.2.3.4.5",
    "1.2.3.4::",
    "::1.2.3.4:5",
    "::-1",
    "::+1",
    "0x1::",
    "::1.2.3.4.",
]
BAD_V6 += ["1:2:3:4:5:6:7::8:9", "1:2:3:4:5:6:7:1.2.3.4", "0000:0000:0000:0000:0000:ffff:255.255.255.255", "localhost"]
BAD_PORTS = ["", "-1", "+1", "65536", "65540", "65600", "66000", "70000", "99999", "100000", "00", "01", "080", "0x50"]
BAD_PORTS += ["8o", "http", "1.0", "1e3", "1_0", "\u0663", "\t1", "1\t", "4294967297", "1,", "65535 ", " 1"]
BAD_LINES = [
    "",
    " ",
    "PROXY",
    "PROXY ",
    "PROXY\t",
    "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2",
    " PROXY TCP4 1.2.3.4 1.2.3.4 1 2",
    "proxy TCP4 1.2.3.4 1.2.3.4 1 2",
    "Proxy TCP4 1.2.3.4 1.2.3.4 1 2",
    "PROXY tcp4 1.2.3.4 1.2.3.4 1 2",
    "PROXY TCP 1.2.3.4 1.2.3.4 1 2",
    "PROXY TCP5 1.2.3.4 1.2.3.4 1 2",
    "PROXY UDP4 1.2.3.4 1.2.3.4 1 2",
    "PROXY UNIX /a /b",
    "PROXY TCP4\t1.2.3.4 1.2.3.4 1 2",
    "PROXY\tTCP4 1.2.3.4 1.2.3.4 1 2",
    "PROXY TCP4  1.2.3.4 1.2.3.4 1 2",
    "PROXY TCP4 1.2.3.4  1.2.3.4 1 2",
    "PROXY TCP4 1.2.3.4\t1.2.3.4 1 2",
    "PROXY TCP4 1.2.3.4 1.2.3.4  1 2",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1  2",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1\t2",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 ",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\t",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\0",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1\r 2",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1",
    "PROXY TCP4 1.2.3.4 1.2.3.4 1 ",
    "PROXY TCP4 1.2.3.4 1.2.3.4",
    "PROXY TCP4 1.2.3.4",
    "PROXY TCP4 ",
    "PROXY TCP4",
    "PROXY TCP6",
    "PROXY TCP6 ::1 1.2.3.4 1 2",
    "PROXY TCP6 1.2.3.4 ::1 1 2",
    "PROXY TCP6 ::1 ::1  1 2",
    "PROXY TCP6 ::1  ::1 1 2",
    "PROXY TCP6 ::1 ::1 1 2 ",
    "PROXY TCP4 ::1 1.2.3.4 1 2",
    "PROXY TCP4 1.2.3.4 ::1 1 2",
    "PROXY unknown",
    "PROXY UNKNOWN\t",
    "PROXY UNKNOWNS",
    "PROXY UNKNOWN\0",
    "PROXY UNKNOWN \r",
    "PROXY UNKNOWN a\rb",
    "PROXYUNKNOWN",
    "PROXZ UNKNOWN",
    "GET / HTTP/1.1",
    "\x16\x03\x01",
    "HELO example.org",
    "SSH-2.0-OpenSSH",
    "\xef\xbb\xbfPROXY UNKNOWN",
]
BAD = [
    *BAD_LINES,
    *(f"PROXY TCP4 {each} 1.2.3.4 1 2" for each in BAD_V4),
    *(f"PROXY TCP4 1.2.3.4 {each} 1 2" for each in BAD_V4),
    *(f"PROXY TCP4 1.2.3.4 1.2.3.4 {each} 2" for each in BAD_PORTS),
    *(f"PROXY TCP6 {each} ::1 1 2" for each in BAD_V6),
    *(f"PROXY TCP6 ::1 {each} 1 2" for each in BAD_V6),
    *(f"PROXY TCP6 :: :: 1 {each}" for each in BAD_PORTS),
]


def line(text: str) -> bytes:
    """Return the text with the line end, its letters up to U+00FF as one byte each."""
    return b"".join(bytes([ord(each)]) if ord(each) < 256 else each.encode() for each in text) + b"\r\n"


GOOD = [line(text) for text in (*(row[0] for row in V4), *(row[0] for row in V6), *UNKNOWN)]


@pytest.mark.parametrize(("text", "source", "destination"), V4)
def test_a_line_of_ipv4(text: str, source: tuple[str, int], destination: tuple[str, int]) -> None:
    expected = ProxyHeader(1, "PROXY", source, destination, (), len(text) + 2)
    assert scan(line(text), Accept.V1) == scan(line(text) + b"payload\r\n", Accept.ANY) == expected


@pytest.mark.parametrize(("text", "source", "destination"), V6)
def test_a_line_of_ipv6(text: str, source: str, destination: str) -> None:
    expected = ProxyHeader(1, "PROXY", (source, 1, 0, 0), (destination, 2, 0, 0), (), len(text) + 2)
    assert scan(line(text), Accept.V1) == scan(line(text) + b"\r\n\r\n\0", Accept.ANY) == expected


@pytest.mark.parametrize("text", UNKNOWN)
def test_unknown_means_the_real_addresses_whatever_follows_it(text: str) -> None:
    assert scan(line(text) + b"\n", Accept.ANY) == ProxyHeader(1, "PROXY", length=len(line(text)))


def test_every_other_line_is_refused() -> None:
    assert len(BAD) > 200
    for text in BAD:
        with pytest.raises(ProxyHeaderError):
            print(text, scan(line(text), Accept.V1))


def test_cr_and_lf_end_a_line_only_together() -> None:
    for good in GOOD:
        for end in (b"\n", b"\r\r\n", b"\r \n", b"\n\r\n", b"\r\0", b"\rG"):
            with pytest.raises(ProxyHeaderError):
                scan(good[:-2] + end, Accept.V1)
        assert scan(good[:-1], Accept.V1) is None


def test_a_line_may_have_107_bytes_and_no_more() -> None:
    longest = b"PROXY UNKNOWN ".ljust(105, b"f") + b"\r\n"
    assert scan(longest, Accept.V1) == ProxyHeader(1, "PROXY", length=107)
    assert scan(longest[:106], Accept.V1) is None
    for bad in (longest[:105] + b"f", longest[:105] + b"f\r", longest[:105] + b"f\r\n", longest[:106] + b"f"):
        assert len(bad) < 107 or _refused(bad)
    assert _refused(b"PROXY UNKNOWN " + b"f" * 93)
    assert _refused(b"PROXY UNKNOWN " + b"f" * 100_000)


def _refused(data: bytes) -> bool:
    try:
        scan(data, Accept.V1)
    except ProxyHeaderError:
        return True
    return False


def test_every_beginning_of_a_good_line_is_a_beginning_for_all_that_accept_it() -> None:
    for good in GOOD:
        for accept in (Accept.V1, Accept.ANY):
            assert all(scan(good[:cut], accept) is None for cut in range(len(good)))


TAILS = ("", "0", "1", ":", "::", ".1", ".1.1", ".1.1.1", "1.1", "1.1.1", "1.1.1.1")


def _can_become_a_line(begun: str) -> bool:
    """Return whether some end makes a good line of this: the last field completed, and the others put behind it."""
    if "PROXY UNKNOWN".startswith(begun) or (begun.startswith("PROXY UNKNOWN ") and "\r" not in begun):
        return True
    fields = begun.split(" ")
    for family, address in (("TCP4", "1.2.3.4"), ("TCP6", "::1")):
        whole = ["PROXY", family, address, address, "1", "2"]
        if len(fields) <= 2:
            if " ".join(whole).startswith(begun):
                return True
            continue
        if any(_is_line([*fields[:-1], fields[-1] + tail, *whole[len(fields) :]]) for tail in TAILS):
            return True
    return False


def _is_line(fields: list[str]) -> bool:
    return not _refused(" ".join(fields).encode("latin-1") + b"\r\n")


def test_a_bad_line_is_refused_at_the_first_byte_that_no_line_has() -> None:
    for text in BAD:
        data = line(text)
        first = next(cut for cut in range(1, len(data) + 1) if _refused(data[:cut]))
        # At the line's end it lacks something, and before it some end could still be put.
        begun = data[: first - 1].rstrip(b"\r").decode("latin-1")
        assert _can_become_a_line(begun), begun
        assert first > len(text) or not _can_become_a_line(data[:first].decode("latin-1")), text
        assert all(_refused(data[:cut]) for cut in range(first, len(data)))


addresses6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
addresses4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
ports = st.integers(0, 65535)


@given(st.tuples(addresses4, addresses4) | st.tuples(addresses6, addresses6), ports, ports, st.binary(max_size=20))
def test_every_pair_of_addresses(
    pair: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...], from_port: int, to_port: int, payload: bytes
) -> None:
    source, destination = pair
    data = f"PROXY TCP{source.version} {source} {destination.exploded} {from_port} {to_port}\r\n".encode()
    header = scan(data + payload, Accept.ANY)
    assert header is not None
    assert header.length == len(data)
    assert isinstance(header.source, tuple)
    assert isinstance(header.destination, tuple)
    assert [type(source)(header.source[0]), header.source[1]] == [source, from_port]
    assert [type(source)(header.destination[0]), header.destination[1]] == [destination, to_port]
    assert len(header.source) == len(header.destination) == (2 if source.version == 4 else 4)


@given(st.sampled_from(GOOD), st.integers(0, 106), st.binary(max_size=3))
def test_a_changed_byte_makes_another_header_or_none_and_never_another_error(good: bytes, at: int, new: bytes) -> None:
    changed = good[:at] + new + good[at + 1 :]
    try:
        header = scan(changed, Accept.ANY)
    except ProxyHeaderError:
        return
    assert header is None or changed[: header.length].endswith(b"\r\n")
