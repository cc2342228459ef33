"""Addresses of `--bind`: which texts are valid, why others are rejected, and that an address survives being text."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.addresses import Address, TCPAddress, UnixAddress, parse_address
from prefork.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9000", TCPAddress(None, 9000)),
        (":0", TCPAddress(None, 0)),
        (":65535", TCPAddress(None, 65535)),
        ("127.0.0.1:80", TCPAddress("127.0.0.1", 80)),
        ("0.0.0.0:80", TCPAddress("0.0.0.0", 80)),
        ("localhost:80", TCPAddress("localhost", 80)),
        ("db-1.example.org:80", TCPAddress("db-1.example.org", 80)),
        ("example.org.:80", TCPAddress("example.org.", 80)),
        ("my_host:80", TCPAddress("my_host", 80)),
        ("3com.example:80", TCPAddress("3com.example", 80)),
        ("0xbeef.example:80", TCPAddress("0xbeef.example", 80)),
        ("[::1]:80", TCPAddress("::1", 80)),
        ("[::]:80", TCPAddress("::", 80)),
        ("[::ffff:127.0.0.1]:80", TCPAddress("::ffff:127.0.0.1", 80)),
        ("[fe80::1%eth0]:80", TCPAddress("fe80::1%eth0", 80)),
        ("[fe80::1%eth0.100]:80", TCPAddress("fe80::1%eth0.100", 80)),
        ("unix:/run/echo.sock", UnixAddress("/run/echo.sock")),
        ("unix:echo.sock", UnixAddress("echo.sock")),
        ("unix:./@echo", UnixAddress("./@echo")),
        ("unix:/run/echo.sock,mode=660", UnixAddress("/run/echo.sock", 0o660)),
        ("unix:/run/echo.sock,mode=0660", UnixAddress("/run/echo.sock", 0o660)),
        ("unix:/run/echo.sock,mode=007", UnixAddress("/run/echo.sock", 0o007)),
        ("unix:/run/écho.sock", UnixAddress("/run/écho.sock")),
        ("unix:" + "a" * 107, UnixAddress("a" * 107)),
    ],
)
def test_a_valid_text_is_parsed(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected HOST:PORT"),
        ("   ", "the port is missing"),
        ("9000", "the port is missing"),
        ("localhost", "the port is missing"),
        ("[::1]", "the port is missing"),
        ("localhost:", "port must be a number"),
        (":", "port must be a number"),
        (":http", "port must be a number"),
        (":65536", "port must be a number from 0 to 65535"),
        (":-1", "port must be a number"),
        (":+80", "port must be a number"),
        (": 80", "port must be a number"),
        (":80 ", "port must be a number"),
        (":8_0", "port must be a number"),
        (":٨٠", "port must be a number"),
        (":" + "9" * 5000, "port must be a number"),
        ("*:9000", "omit the host, as in :9000"),
        ("*:", "omit the host"),
        ("::1:9000", "in brackets"),
        (":::9000", "in brackets"),
        ("a:b:9000", "in brackets"),
        ("[::1:9000", "in brackets"),
        ("::1]:9000", "in brackets"),
        ("[127.0.0.1]:9000", "brackets are for IPv6"),
        ("[]:9000", "brackets are for IPv6"),
        ("[::g]:9000", "not an IPv6 address"),
        ("[1:2:3]:9000", "not an IPv6 address"),
        ("[fe80::1%]:9000", "the zone after %"),
        ("[fe80::1%a/b]:9000", "the zone after %"),
        ("[fe80::1%a b]:9000", "the zone after %"),
        ("[fe80::1%averylonginterfacename]:9000", "the zone after %"),
        ("127.1:9000", "not an IPv4 address"),
        ("0:9000", "not an IPv4 address"),
        ("2130706433:9000", "not an IPv4 address"),
        ("0x7f.1:9000", "not an IPv4 address"),
        ("127.0.0.0x1:9000", "not an IPv4 address"),
        ("010.0.0.1:9000", "not an IPv4 address"),
        ("127.0.0.256:9000", "not an IPv4 address"),
        ("1.2.3.4.5:9000", "not an IPv4 address"),
        ("ho st:9000", "name or an IP address"),
        (" localhost:9000", "name or an IP address"),
        ("-x:9000", "name or an IP address"),
        ("a..b:9000", "name or an IP address"),
        (".:9000", "name or an IP address"),
        ("a/b:9000", "name or an IP address"),
        ("tcp://0.0.0.0:9000", "no scheme: write 0.0.0.0:9000"),
        ("http://a:9000/", "no scheme: write a:9000"),
        ("tcp://\x1b[2J", r"no scheme: write \x1b[2J"),
        ("*:\x1b", "omit the host, as in :9000"),
        ("tcp://", "no scheme: write :9000"),
        (":9413,:9414", "repeat --bind, or separate addresses by spaces in PREFORK_BIND"),
        ("unix:/a,unix:/b", "repeat --bind for another address"),
        ("a\0b:9000", "name or an IP address"),
        ("a\nb:9000", "name or an IP address"),
        ("a" * 64 + ":9000", "name or an IP address"),
        (".".join(["a" * 60] * 5) + ":9000", "name or an IP address"),
        ("bücher.example:9000", "xn--"),
        ("fd:x", "number of a descriptor"),
        ("fd:", "number of a descriptor"),
        ("fd:2", "must be 3 or more"),
        ("systemd:", "FileDescriptorName="),
        ("systemd:a b", "FileDescriptorName="),
        ("unix:", "path of a socket"),
        ("unix:,mode=660", "path of a socket"),
        ("unix:/run/", "path of a socket"),
        ("unix:a\0b", "path of a socket"),
        ("unix:@abstract", "abstract"),
        ("unix:" + "a" * 108, "108 bytes"),
        ("unix:" + "é" * 54, "108 bytes"),
        ("unix:a\ud800", "cannot be encoded"),
        ("unix:/x,mode=", "three octal digits"),
        ("unix:/x,mode=66", "three octal digits"),
        ("unix:/x,mode=999", "three octal digits"),
        ("unix:/x,mode=1777", "three octal digits"),
        ("unix:/x,mode=0o660", "three octal digits"),
        ("unix:/x,mode=660,mode=660", "three octal digits"),
        ("unix:/x,mod=660", "only mode= can follow"),
        ("unix:/a,b", "only mode= can follow"),
        ("unix:/x,", "only mode= can follow"),
    ],
)
def test_an_invalid_text_is_rejected_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    message = str(caught.value)
    assert reason in message
    assert message.startswith("--bind ")
    assert len(message) < 500
    assert message.isprintable()


# A link-local address is refused without its interface.
ipv6 = st.ip_addresses(v=6).filter(lambda address: not address.is_link_local)
hosts = st.one_of(
    st.none(),
    st.ip_addresses(v=4).map(str),
    ipv6.map(str),
    ipv6.map(lambda address: address.exploded),
    st.tuples(st.ip_addresses(v=6), st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True)).map(
        lambda both: f"{both[0]}%{both[1]}"
    ),
    st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z]{2,10}){0,3}\.?", fullmatch=True),
)
paths = st.text(st.characters(exclude_characters="\0,", exclude_categories=["Cs"]), min_size=1, max_size=26).filter(
    lambda path: not path.endswith("/") and not path.startswith("@")
)


@settings(deadline=None)
@given(st.builds(TCPAddress, hosts, st.integers(0, 65535)))
def test_a_tcp_address_survives_being_text(address: TCPAddress) -> None:
    assert parse_address(str(address)) == address


@settings(deadline=None)
@given(st.builds(UnixAddress, paths, st.integers(0, 0o777)))
def test_a_unix_address_survives_being_text(address: UnixAddress) -> None:
    assert parse_address(str(address)) == address


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(":[]%.*0123456789abcdefx,=unixmod@/-", max_size=30)))
def test_any_text_is_parsed_or_rejected_in_one_line(text: str) -> None:
    address, refusal = None, ""
    try:
        address = parse_address(text)
    except ConfigError as exc:
        refusal = str(exc)
    assert refusal.isprintable()
    assert len(refusal) < 500
    assert address is not None or refusal
    assert address is None or parse_address(str(address)) == address
    if isinstance(address, TCPAddress) and address.host is not None and ":" in address.host:
        ipaddress.IPv6Address(address.host)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TCPAddress("", 80),
        lambda: TCPAddress("a b", 80),
        lambda: TCPAddress("[::1]", 80),
        lambda: TCPAddress("localhost", 65536),
        lambda: TCPAddress("localhost", -1),
        lambda: TCPAddress("localhost", "80"),  # type: ignore[arg-type]  # what an untyped caller may do
        lambda: UnixAddress(""),
        lambda: UnixAddress("/a,b"),
        lambda: UnixAddress("/a", 0o1000),
        lambda: UnixAddress("/a", -1),
    ],
)
def test_addresses_made_in_python_are_checked_too(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]  # a list of callables


@pytest.mark.parametrize("text", ["fd:3", "fd:77", "systemd", "systemd:web", "systemd:web:9000"])
def test_inherited_sockets_are_named_by_descriptor_or_by_systemd(text: str) -> None:
    if text.count(":") > 1:
        with pytest.raises(ConfigError):
            parse_address(text)
    else:
        assert str(parse_address(text)) == text
