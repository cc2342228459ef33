"""The trust list of PROXY headers: what its texts stand for, and which peers it has."""

from __future__ import annotations

import pytest

from prefork.config import settings_of
from prefork.core.proxy_protocol import Accept
from prefork.core.proxy_trust import TrustedProxies, proxy_policy
from prefork.errors import ConfigError
from prefork.proxies import parse_proxy_source


def trusts(peer: object, *sources: str) -> bool:
    return TrustedProxies(map(parse_proxy_source, sources)).trusts(peer)


@pytest.mark.parametrize(
    ("peer", "sources", "expected"),
    [
        (("10.1.2.3", 5), ["10.0.0.0/8"], True),
        (("11.1.2.3", 5), ["10.0.0.0/8"], False),
        (("11.1.2.3", 5), ["10.0.0.0/8", "11.1.2.3"], True),
        # The peer of a socket for both families.
        (("::ffff:10.1.2.3", 5, 0, 0), ["10.0.0.0/8"], True),
        (("::ffff:11.1.2.3", 5, 0, 0), ["10.0.0.0/8"], False),
        (("10.1.2.3", 5), ["::ffff:10.0.0.0/104"], True),
        (("::ffff:10.1.2.3", 5, 0, 0), ["::ffff:a00:0/104"], True),
        (("::ffff:10.1.2.3", 5, 0, 0), ["::/1"], False),
        (("2001:db8::7", 5, 0, 0), ["2001:db8::/32"], True),
        (("2001:db9::7", 5, 0, 0), ["2001:db8::/32", "10.0.0.0/8"], False),
        (("fe80::1%eth0", 5, 0, 2), ["fe80::/10"], True),
        (("10.1.2.3", 5), ["anywhere"], True),
        (("2001:db8::7", 5, 0, 0), ["anywhere"], True),
        # A peer on a unix socket has no address, or one that it has chosen.
        ("", ["anywhere", "127.0.0.0/8"], False),
        ("", ["unix:"], True),
        (b"\0name", ["unix:"], True),
        (None, ["anywhere"], False),
        ("10.1.2.3", ["10.0.0.0/8"], False),
        (("10.1.2.3", 5), ["unix:"], False),
        (("no address", 5), ["10.0.0.0/8"], False),
    ],
)
def test_a_peer_is_trusted_by_its_real_address(peer: object, sources: list[str], expected: bool) -> None:
    assert trusts(peer, *sources) is expected


def test_an_answer_does_not_change_and_few_are_kept() -> None:
    trusted = TrustedProxies([parse_proxy_source("10.0.0.0/8")])
    for number in range(3000):
        assert trusted.trusts((f"10.0.{number >> 8}.{number & 255}", 1))
        assert not trusted.trusts((f"11.0.{number >> 8}.{number & 255}", 1))
    assert trusted.trusts(("10.0.0.0", 1))
    assert len(trusted._known) <= 1024


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0.0.0/0", "trusts every peer, which can then claim any address (if that is meant: --proxy-from anywhere)"),
        ("::/0", "trusts every peer, which can then claim any address (if that is meant: --proxy-from anywhere)"),
        (
            "::ffff:0:0/96",
            "trusts every peer, which can then claim any address (if that is meant: --proxy-from anywhere)",
        ),
        ("10.0.0.1/8", "has bits beyond its length: is 10.0.0.0/8 meant?"),
        ("unix:/run/x", "a proxy on a unix socket has no name of its own: use unix: for all of them"),
        ("balancer", "must be a network such as 10.0.0.0/8 or 2001:db8::/32, an address, unix: or anywhere"),
        ("10.0.0.0/33", "must be a network such as 10.0.0.0/8 or 2001:db8::/32, an address, unix: or anywhere"),
        (
            "10.0.0.0/8,10.1.0.0/16",
            "must be a network such as 10.0.0.0/8 or 2001:db8::/32, an address, unix: or anywhere",
        ),
        ("", "must be a network such as 10.0.0.0/8 or 2001:db8::/32, an address, unix: or anywhere"),
        (7, "must be text, such as 10.0.0.0/8"),
    ],
)
def test_what_is_no_proxy_is_refused_with_what_would_be(text: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_proxy_source(text)
    assert str(caught.value).endswith(f": {message}")


def test_each_of_the_two_options_needs_the_other() -> None:
    with pytest.raises(ConfigError, match="--proxy-protocol v2: name the proxies"):
        settings_of({"proxy_protocol": "v2"})
    with pytest.raises(ConfigError, match="--proxy-from 10.0.0.0/8: is of no use"):
        settings_of({"proxy_from": "10.0.0.0/8"})
    settings = settings_of({"proxy_protocol": "any", "proxy_from": ["10.0.0.0/8", "unix:"]})
    policy = proxy_policy(settings.proxy_protocol, settings.proxy_from)
    assert policy is not None
    assert policy.accept is Accept.ANY
    assert policy.trusted.trusts("")
    assert proxy_policy("off", ()) is None
