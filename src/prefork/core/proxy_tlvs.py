"""The TLVs (type, length, value) of a PROXY header of version 2: check them, and name those that are registered.

No addresses and no sockets here. Values stay bytes: a balancer copies many of them from its client, which may write
anything into them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

TLVs: TypeAlias = tuple[tuple[int, bytes], ...]

# PROXY protocol, 2.2: the registered types, those of which a header has one, and the sub-types of the TLV of TLS.
ALPN, AUTHORITY, CRC32C, NOOP, UNIQUE_ID, SSL, NETNS = 0x01, 0x02, 0x03, 0x04, 0x05, 0x20, 0x30
SSL_VERSION, SSL_CN, SSL_CIPHER, SSL_SIG_ALG, SSL_KEY_ALG = 0x21, 0x22, 0x23, 0x24, 0x25
SSL_GROUP, SSL_SIG_SCHEME, SSL_CLIENT_CERT = 0x26, 0x27, 0x28
#: In the range for applications. AWS and Azure put a sub-type in front of the value, Google Cloud does not.
GOOGLE, AWS, AZURE = 0xE0, 0xEA, 0xEE
AWS_VPC_ENDPOINT_ID = AZURE_LINK_ID = b"\x01"
_SINGLE = frozenset((ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL, NETNS))
_SINGLE_IN_SSL = frozenset(range(SSL_VERSION, SSL_CLIENT_CERT + 1))
UNIQUE_ID_LIMIT = 128
CRC32C_SIZE = 4
CLIENT_SSL, CLIENT_CERT_CONN, CLIENT_CERT_SESS = 0x01, 0x02, 0x04
_HEAD = struct.Struct("!BH")
_SSL_HEAD = struct.Struct("!BI")


class ProxyHeaderError(ValueError):
    """Raised for bytes that are no PROXY header. The message is the reason in words, without a byte of the peer."""


@dataclass(frozen=True, slots=True)
class ProxyTLS:
    """The TLS between a client and its balancer, as the balancer describes it: `stream.proxy.ssl`."""

    client: int
    """Bits: 1 the client used TLS, 2 it sent a certificate on this connection, 4 it did so in this TLS session."""
    verify: int
    """What the verification of the client's certificate returned; 0 also if there was no certificate."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """The sub-TLVs, in their order."""

    @property
    def used(self) -> bool:
        """Whether the client used TLS at all."""
        return bool(self.client & CLIENT_SSL)

    @property
    def verified(self) -> bool:
        """Whether the client has proved a certificate that the balancer trusts. Never judge by `verify` itself."""
        return self.verify == 0 and bool(self.client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS))

    @property
    def version(self) -> bytes | None:
        """The version of TLS, as in b"TLSv1.3"."""
        return only(self.tlvs, SSL_VERSION)

    @property
    def common_name(self) -> bytes | None:
        """The common name in the client's certificate, which is UTF-8 only if the balancer is honest."""
        return only(self.tlvs, SSL_CN)

    @property
    def cipher(self) -> bytes | None:
        """The name of the cipher, as in b"ECDHE-RSA-AES128-GCM-SHA256"."""
        return only(self.tlvs, SSL_CIPHER)

    @property
    def sig_alg(self) -> bytes | None:
        """The algorithm that signed the balancer's certificate, as in b"RSA-SHA256"."""
        return only(self.tlvs, SSL_SIG_ALG)

    @property
    def key_alg(self) -> bytes | None:
        """The kind of key in the balancer's certificate, as in b"RSA2048"."""
        return only(self.tlvs, SSL_KEY_ALG)

    @property
    def group(self) -> bytes | None:
        """The group of the key exchange, as in b"secp256r1"."""
        return only(self.tlvs, SSL_GROUP)

    @property
    def sig_scheme(self) -> bytes | None:
        """The signature scheme of the handshake, as in b"rsa_pss_rsae_sha256"."""
        return only(self.tlvs, SSL_SIG_SCHEME)

    @property
    def client_certificate(self) -> bytes | None:
        """The client's certificate in DER."""
        return only(self.tlvs, SSL_CLIENT_CERT)


def only(tlvs: TLVs, kind: int, prefix: bytes = b"") -> bytes | None:
    """Return the value of the TLV of this type, behind `prefix`; None unless there is exactly one.

    Of two, another program may take the other: neither is believed.
    """
    found = [value for each, value in tlvs if each == kind and value.startswith(prefix)]
    return found[0][len(prefix) :] if len(found) == 1 else None


def parse_tlvs(data: bytes, start: int, end: int) -> TLVs:
    """Return the TLVs that fill `data` from `start` to `end` exactly, the inner ones of TLS checked as well.

    Raises ProxyHeaderError if they do not, if a registered type occurs twice, and for a value of a wrong size.
    """
    tlvs = _split(data, start, end, _SINGLE)
    for kind, value in tlvs:
        if kind == SSL:
            parse_ssl(value)
        elif kind == CRC32C and len(value) != CRC32C_SIZE:
            raise ProxyHeaderError("the CRC32C in the header is not four bytes")
        elif kind == UNIQUE_ID and len(value) > UNIQUE_ID_LIMIT:
            raise ProxyHeaderError(f"the unique id in the header has more than {UNIQUE_ID_LIMIT} bytes")
    return tlvs


def parse_ssl(value: bytes) -> ProxyTLS:
    """Return the facts in the value of the TLV of TLS. Raises ProxyHeaderError if it is malformed."""
    if len(value) < _SSL_HEAD.size:
        raise ProxyHeaderError("the TLV of TLS in the header is too short")
    client, verify = _SSL_HEAD.unpack_from(value)
    return ProxyTLS(client, verify, _split(value, _SSL_HEAD.size, len(value), _SINGLE_IN_SSL))


def _split(data: bytes, at: int, end: int, single: frozenset[int]) -> TLVs:
    tlvs = []
    seen = set()
    while at < end:
        if at + _HEAD.size > end:
            raise ProxyHeaderError("the header ends inside the head of a TLV")
        kind, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + size > end:
            raise ProxyHeaderError("a TLV is longer than what is left of the header")
        if kind in single:
            if kind in seen:
                raise ProxyHeaderError("a TLV that is allowed once is there twice")
            seen.add(kind)
        tlvs.append((kind, data[at : at + size]))
        at += size
    return tuple(tlvs)


def join_tlvs(tlvs: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the TLVs as bytes. Raises ValueError for a type or a size that does not fit."""
    parts = []
    for kind, value in tlvs:
        if not 0 <= kind <= 0xFF or len(value) > 0xFFFF:
            raise ValueError("a TLV has a type of 8 bits and a value of at most 65,535 bytes")
        parts.append(_HEAD.pack(kind, len(value)) + value)
    return b"".join(parts)
