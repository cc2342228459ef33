"""What must hold for any bytes: the parser says one of three things, and says the same of what begins and follows."""

from __future__ import annotations

from prefork import ProxyHeader, proxy_header
from prefork.core.proxy_protocol import LENGTH_LIMIT, Accept, ProxyHeaderError, scan

REFUSED = "refused"


def verdict(data: bytes, accept: Accept) -> ProxyHeader | str | None:
    """Return the header, None for the beginning of one, or `REFUSED`. Any other exception is a failure."""
    try:
        return scan(data, accept)
    except ProxyHeaderError as exc:
        return REFUSED if str(exc).isascii() else f"a reason with bytes of the peer: {exc}"


def check(data: bytes) -> None:
    """Raise AssertionError, or what the parser raised, if anything does not hold."""
    found = verdict(data, Accept.ANY)
    for accept, first in ((Accept.V1, b"P"), (Accept.V2, b"\r")):
        expected = found if not data or data[:1] == first else REFUSED
        assert verdict(data, accept) == expected, accept
    if found is None:
        assert len(data) < LENGTH_LIMIT
    elif isinstance(found, ProxyHeader):
        _check_header(found, data)
    else:
        assert verdict(data + b"\r\n\0", Accept.ANY) == REFUSED
    # Not each beginning, which would cost 4,000 scans: those around what the data itself tells.
    for cut in {1, len(data) // 2, len(data) - 1, 13, 14, 15, 16} & set(range(len(data))):
        begun = verdict(data[:cut], Accept.ANY)
        if begun == REFUSED:
            assert found == REFUSED, cut
        elif begun is not None:
            assert begun == found, cut


def _check_header(found: ProxyHeader, data: bytes) -> None:
    assert 0 < found.length <= min(len(data), LENGTH_LIMIT)
    header = data[: found.length]
    assert verdict(header, Accept.ANY) == verdict(header + header, Accept.ANY) == found
    assert verdict(header[:-1], Accept.ANY) is None
    facts = [getattr(found, name) for name in dir(type(found)) if not name.startswith("_")]
    assert len(facts) > 10
    if found.ssl is not None:
        assert [getattr(found.ssl, name) for name in dir(type(found.ssl)) if not name.startswith("_")]
    if found.source is None or found.destination is None:
        assert found.source is found.destination is None
        assert found.tlvs == ()
        return
    _check_written_again(found)


def _check_written_again(found: ProxyHeader) -> None:
    assert found.source is not None
    assert found.destination is not None
    ends = (found.source, found.destination)
    options = {"tlvs": found.tlvs, "crc32c": found.crc32c} if found.version == 2 else {}
    again = proxy_header(ends, version=found.version, **options)  # type: ignore[arg-type]  # of the version's own
    read = verdict(again, Accept.ANY)
    assert isinstance(read, ProxyHeader)
    # Addresses that are both IPv4 in IPv6 become IPv4, and the checksum moves to the end.
    plain = [(str(each[0]).removeprefix("::ffff:"), each[1]) if isinstance(each, tuple) else each for each in ends]
    told = [
        (str(each[0]).removeprefix("::ffff:"), each[1]) if isinstance(each, tuple) else each
        for each in (read.source, read.destination)
    ]
    assert plain == told
    assert [each for each in read.tlvs if each[0] != 3] == [each for each in found.tlvs if each[0] != 3]
    assert read.crc32c == found.crc32c
