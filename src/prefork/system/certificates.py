"""Read when certificates are valid and what they are for, because `ssl` tells it of certificate authorities only.

Nothing here verifies a certificate; `tls_files.py` loads it.
"""

from __future__ import annotations

import base64
import calendar
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.server_names import Identity, canonical
from ..text import count_of

#: Certificates of one chain that are read; longer ones are refused by clients.
MAX_CERTIFICATES = 32
_DAY = 24 * 3600
#: A certificate that ends earlier than this is reported.
WARN_BEFORE = 30 * _DAY
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END")
#: Tags of DER (X.690, 8.1.2): the version of a certificate and its extensions (RFC 5280, 4.1), the two kinds of a time,
#: an octet string, and a host name (RFC 5280, 4.2.1.6).
_VERSION, _EXTENSIONS, _UTC_TIME, _GENERALIZED_TIME, _OCTETS, _DNS_NAME = 0xA0, 0xA3, 0x17, 0x18, 0x04, 0x82
#: id-ce-subjectAltName (RFC 5280, 4.2.1.6)
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")
#: rsaEncryption, id-RSASSA-PSS, id-ecPublicKey, Ed25519, Ed448 (RFC 3279, 4055, 5480, 8410).
_KEY_TYPES = {
    bytes.fromhex("2a864886f70d010101"): "RSA",
    bytes.fromhex("2a864886f70d01010a"): "RSA-PSS",
    bytes.fromhex("2a8648ce3d0201"): "EC",
    bytes.fromhex("2b6570"): "ED25519",
    bytes.fromhex("2b6571"): "ED448",
}
#: A host name that can be served: labels of at most 63 characters, the first of which may be a wildcard.
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_MAX_HOST = 253


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate is valid, both in seconds since 1970."""

    not_before: int
    not_after: int

    def problem(self, now: float) -> str:
        """Return what is wrong with the certificate at the time `now`; "" if nothing is."""
        if now < self.not_before:
            return f"it is not valid before {day_of(self.not_before)}"
        return f"it expired on {day_of(self.not_after)}" if now > self.not_after else ""

    def days_left(self, now: float) -> int:
        """Return the number of whole days that are left, which is negative once it has expired."""
        return int((self.not_after - now) // _DAY)


def read_validities(pem: bytes) -> tuple[Validity | None, ...]:
    """Return the validity of each certificate in `pem`, in order: that of the server first, then of its issuers.

    One that cannot be read is None, because OpenSSL knows more encodings than this and has the last word.
    """
    return tuple(_validity_or_none(each[1]) for each in itertools.islice(_PEM.finditer(pem), MAX_CERTIFICATES))


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one certificate of a chain."""

    text: str
    is_invalid: bool
    """Whether clients refuse it now; otherwise they will soon."""
    is_leaf: bool
    """Whether it is the server's own, and not that of an issuer, which clients may not need."""


def examine(pem: bytes, now: float) -> list[Finding]:
    """Return what is wrong, or soon will be, with the certificates in `pem` at the time `now`, the server's first."""
    findings = []
    for position, each in enumerate(read_validities(pem)):
        if each is None:
            continue
        what = f"certificate {position + 1} of the chain: " if position else ""
        if problem := each.problem(now):
            findings.append(Finding(f"{what}{problem}", True, not position))
        elif each.not_after - now < WARN_BEFORE:
            left = count_of(each.days_left(now), "day")
            findings.append(Finding(f"{what}it expires in {left}, on {day_of(each.not_after)}", False, not position))
    return findings


def first_end(pem: bytes) -> int | None:
    """Return when the first certificate in `pem` expires, in seconds since 1970; None if none can be read."""
    return min((each.not_after for each in read_validities(pem) if each is not None), default=None)


def read_identity(pem: bytes) -> Identity:
    """Return what the first certificate in `pem` is for: its host names (dNSName), and the type of its key.

    Without names, and of type "", if it cannot be read. Names that no client can ask for are left out.
    """
    first = _PEM.search(pem)
    try:
        fields = [] if first is None else _fields(base64.b64decode(first[1]))
        # subject, subjectPublicKeyInfo, and extensions last
        ((_, algorithm), *_) = _elements(fields[5][1])
        ((_, identifier), *_) = _elements(algorithm)
        names = list(_host_names(fields[-1][1])) if fields[-1][0] == _EXTENSIONS else []
    except (ValueError, IndexError):
        return Identity((), "")
    return Identity(tuple(dict.fromkeys(names)), _KEY_TYPES.get(identifier, identifier.hex()))


def _host_names(extensions: bytes) -> Iterator[str]:
    ((_, listed), *_) = _elements(extensions)
    for _, extension in _elements(listed):
        (_, identifier), *_, (tag, value) = _elements(extension)
        if identifier != _SUBJECT_ALT_NAME or tag != _OCTETS:
            continue
        ((_, names), *_) = _elements(value)
        for kind, content in _elements(names):
            name = canonical(content.decode("latin-1")) if kind == _DNS_NAME else ""
            if len(name) <= _MAX_HOST and _HOST.fullmatch(name):
                yield name


def day_of(seconds: int) -> str:
    """Return the date and time of day of `seconds` since 1970 in UTC, as in `2026-11-24 10:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _validity_or_none(text: bytes) -> Validity | None:
    try:
        return _validity(base64.b64decode(text))
    except (ValueError, IndexError):
        return None


def _validity(der: bytes) -> Validity:
    """Return the validity of a certificate (RFC 5280, 4.1). Raises ValueError or IndexError if `der` is none."""
    # serialNumber, signature, issuer, validity
    (start_tag, start), (end_tag, end) = _elements(_fields(der)[3][1])
    return Validity(_seconds(start_tag, start), _seconds(end_tag, end))


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and content of each field of a certificate but its version. Raises ValueError or IndexError."""
    ((_, certificate), *_) = _elements(der)
    ((_, body), *_) = _elements(certificate)
    return [(tag, content) for tag, content in _elements(body) if tag != _VERSION]


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element in `data` (X.690, 8.1). Raises ValueError or IndexError if it is cut."""
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4:
                raise ValueError("the length of an element is not of DER")
            length = int.from_bytes(data[position : position + size], "big")
            position += size
        content = data[position : position + length]
        if len(content) < length:
            raise ValueError("an element is cut")
        yield tag, content
        position += length


def _seconds(tag: int, text: bytes) -> int:
    """Return a time of RFC 5280, 4.1.2.5, which is in UTC and has seconds, as seconds since 1970."""
    if tag == _UTC_TIME:
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    if not re.fullmatch(rb"[0-9]{14}Z", text):
        raise ValueError("not a time in UTC")
    year, *rest = (int(part) for part in (text[:4], text[4:6], text[6:8], text[8:10], text[10:12], text[12:14]))
    return calendar.timegm((year, *rest, 0, 0, 0))
