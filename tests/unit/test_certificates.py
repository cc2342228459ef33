"""When certificates are valid, as prefork reads it from their files, compared with another reader."""

from __future__ import annotations

import base64
import datetime

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from prefork.core.server_names import Identity
from prefork.system.certificates import (
    MAX_CERTIFICATES,
    Validity,
    day_of,
    examine,
    first_end,
    read_identity,
    read_validities,
)

DAY = 24 * 3600
DAYS = datetime.timedelta(days=1)


def expected(pem: bytes) -> Validity:
    read = x509.load_pem_x509_certificate(pem)
    return Validity(int(read.not_valid_before_utc.timestamp()), int(read.not_valid_after_utc.timestamp()))


@pytest.mark.parametrize("year", [2026, 2049, 2050, 9999])
def test_the_dates_are_those_that_another_reader_finds(year: int) -> None:
    end = datetime.datetime(year, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", not_after=end)
    chain = [each.bytes() for each in (*issued.cert_chain_pems, authority.cert_pem)]
    assert read_validities(b"leading text\n" + b"".join(chain)) == tuple(map(expected, chain))
    assert first_end(chain[0]) == end.timestamp()


def test_a_time_is_judged_by_both_ends() -> None:
    validity = Validity(1000 * DAY, 1010 * DAY)
    assert validity.problem(1005 * DAY) == validity.problem(1000 * DAY) == validity.problem(1010 * DAY) == ""
    assert validity.problem(999 * DAY).startswith("it is not valid before 1972-09-27 00:00 UTC")
    assert validity.problem(1010 * DAY + 1) == "it expired on 1972-10-07 00:00 UTC"
    assert [validity.days_left(day * DAY) for day in (1000, 1009.5, 1010, 1010.1)] == [10, 0, 0, -1]
    assert day_of(0) == "1970-01-01 00:00 UTC"


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_dates(content: bytes) -> None:
    assert read_validities(content) == ()
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(content) + b"-----END CERTIFICATE-----\n"
    assert read_validities(pem * 2) == (None, None)
    assert (first_end(pem), examine(pem, 0)) == (None, [])


def test_what_ends_soon_and_what_has_ended_is_said_of_each_certificate_of_a_chain() -> None:
    end = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    pems = [
        authority.issue_cert("localhost", not_after=end + days * DAYS).cert_chain_pems[0].bytes() for days in (0, 9)
    ]
    unread = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

    def said(pem: bytes, days: float) -> list[tuple[str, bool, bool]]:
        found = examine(pem, (end + days * DAYS).timestamp())
        return [(each.text, each.is_invalid, each.is_leaf) for each in found]

    assert said(pems[0], -30.5) == []
    assert said(b"".join(pems), -24) == [("it expires in 24 days, on 2030-01-01 00:00 UTC", False, True)]
    assert said(unread + pems[1], 8.5) == [
        ("certificate 2 of the chain: it expires in 0 days, on 2030-01-10 00:00 UTC", False, False)
    ]
    assert [each[1:] for each in said(b"".join(pems), 10)] == [(True, True), (True, False)]


def test_a_certificate_that_is_cut_or_changed_anywhere_raises_nothing_and_the_number_read_is_bounded() -> None:
    pem = trustme.CA(key_type=trustme.KeyType.ECDSA).cert_pem.bytes()
    assert len(read_validities(pem * (MAX_CERTIFICATES + 5))) == MAX_CERTIFICATES
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    for position in range(len(der)):
        for changed in (der[:position], der[:position] + b"\xff" + der[position + 1 :]):
            body = base64.encodebytes(changed)
            read_validities(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n")


@pytest.mark.parametrize(("kind", "key_type"), [(trustme.KeyType.ECDSA, "EC"), (trustme.KeyType.RSA, "RSA")])
def test_names_and_type_of_key_are_those_of_the_first_certificate(kind: trustme.KeyType, key_type: str) -> None:
    """Addresses and mail addresses are names of another kind, and no client asks for them by SNI."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    names = ("A.Example", "*.example.org", "b\u00fccher.example", "192.0.2.1", "2001:db8::1", "user@example.org")
    issued = authority.issue_cert(*names, key_type=kind)
    pem = b"text\n" + issued.cert_chain_pems[0].bytes() + authority.cert_pem.bytes()
    assert read_identity(pem) == Identity(("a.example", "*.example.org", "xn--bcher-kva.example"), key_type)
    assert read_identity(authority.issue_cert(common_name="cn.example", key_type=kind).cert_chain_pems[0].bytes()) == (
        Identity((), key_type)
    )
    assert read_identity(b"no certificate") == Identity((), "")


_DER = base64.b64decode(
    b"".join(
        trustme.CA(key_type=trustme.KeyType.ECDSA)
        .issue_cert("a.example", key_type=trustme.KeyType.ECDSA)
        .cert_chain_pems[0]
        .bytes()
        .splitlines()[1:-1]
    )
)


@given(st.integers(0, len(_DER) - 1), st.binary(max_size=3))
def test_names_of_a_damaged_certificate_are_names_or_none(position: int, damage: bytes) -> None:
    der = _DER[:position] + damage + _DER[position + len(damage) :]
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    for name in read_identity(pem).names:
        assert name.isascii()
        assert name.isprintable()
