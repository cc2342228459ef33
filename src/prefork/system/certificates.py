"""Read when certificates are valid, from their PEM text, because `ssl` tells it of certificate authorities only.

Nothing here verifies a certificate; `tls_contexts.py` loads it.
"""

from __future__ import annotations

import base64
import calendar
import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..text import count_of

#: Certificates of one chain that are read; longer ones are refused by clients.
MAX_CERTIFICATES = 32
_DAY = 24 * 3600
#: A certificate that ends earlier than this is reported.
WARN_BEFORE = 30 * _DAY
_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END")
#: Tags of DER (X.690, 8.1.2): the version of a certificate (RFC 5280, 4.1), and the two kinds of a time.
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


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
    ((_, certificate), *_) = _elements(der)
    ((_, body), *_) = _elements(certificate)
    fields = [content for tag, content in _elements(body) if tag != _VERSION]
    # serialNumber, signature, issuer, validity
    (start_tag, start), (end_tag, end) = _elements(fields[3])
    return Validity(_seconds(start_tag, start), _seconds(end_tag, end))


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
