"""The PROXY header that a handler sends on a connection that it opens: from the facts of the connection it serves.

How a header is written is decided in `core/proxy_writing.py`.
"""

from __future__ import annotations

import errno
import os
import ssl
import struct
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

from ..core import proxy_tlvs
from ..core.proxy_header import ProxyHeader
from ..core.proxy_writing import endpoint, write_v1, write_v2

#: An address as `get_extra_info("peername")` gives it.
Address: TypeAlias = "tuple[Any, ...] | str | bytes"
#: HAProxy writes 0 without a certificate, but the specification wants what cannot be taken for a success.
_NO_CERTIFICATE = 1


class Served(Protocol):
    """A connection: a `Stream`, or a StreamWriter or a transport of asyncio."""

    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


def proxy_header(
    connection: Served | tuple[Address, Address] | None,
    *,
    version: Literal[1, 2] = 2,
    tlvs: Iterable[tuple[int, bytes]] = (),
    crc32c: bool = False,
) -> bytes:
    """Return the PROXY header that tells a server behind us of the client of `connection`. Send it before all else.

    `connection` is the one that is served: a stream, or asyncio's writer or transport. Behind a proxy, the addresses
    are those that it told. Two addresses, source and destination, do as well. None is for a connection of our own, such
    as a health check: LOCAL, and UNKNOWN in version 1.

    Of a client that used TLS, version 2 tells ALPN, SNI as the authority, and version, cipher and common name in the
    TLV of TLS. `tlvs` are added to those, and replace those of the same type: pass `stream.proxy.tlvs` to hand on what
    a proxy told. `crc32c` adds a checksum, and one in `tlvs` is left out. Raises ValueError for addresses and TLVs that
    have no header, and OSError (ENOTCONN) if the connection's own address is gone because it is closed.
    """
    if version not in (1, 2):
        raise ValueError(f"the PROXY protocol has version 1 and 2, not {version}")
    ends = None if connection is None else _ends(connection)
    found = None if ends is None else (endpoint(ends[0]), endpoint(ends[1]))
    added = list(tlvs)
    if version == 1:
        if added or crc32c:
            raise ValueError("version 1 of the PROXY protocol has neither TLVs nor a checksum")
        return write_v1(found)
    if connection is not None and not isinstance(connection, tuple):
        given = {kind for kind, _ in added}
        added = [each for each in _tls_tlvs(connection) if each[0] not in given] + added
    return write_v2(found, added, crc32c)


def _ends(connection: Served | tuple[Address, Address]) -> tuple[object, object]:
    if isinstance(connection, tuple):
        if len(connection) != 2:
            raise ValueError("two addresses are expected: source and destination")
        return connection
    header = getattr(connection, "proxy", None) or connection.get_extra_info("proxy")
    source = connection.get_extra_info("peername")
    destination = header.destination if isinstance(header, ProxyHeader) else None
    if destination is None:
        destination = connection.get_extra_info("sockname")
    if source is None or destination is None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    return source, destination


def _tls_tlvs(connection: Served) -> Iterable[tuple[int, bytes]]:
    """Yield what the connection's TLS is; nothing in the clear."""
    tls = connection.get_extra_info("ssl_object")
    if tls is None:
        return
    protocol, name = tls.selected_alpn_protocol(), getattr(tls, "sni", None)
    if protocol is not None:
        yield proxy_tlvs.ALPN, protocol.encode()
    if name is not None:
        yield proxy_tlvs.AUTHORITY, name.encode()
    yield proxy_tlvs.SSL, _ssl_value(tls)


def _ssl_value(tls: ssl.SSLObject) -> bytes:
    client, verify = proxy_tlvs.CLIENT_SSL, _NO_CERTIFICATE
    cipher = tls.cipher()
    facts = [(proxy_tlvs.SSL_VERSION, tls.version()), (proxy_tlvs.SSL_CIPHER, cipher and cipher[0])]
    # A certificate that is wrong has failed the handshake. A resumption sends none: it is the one of the session.
    if tls.getpeercert(binary_form=True):
        client |= proxy_tlvs.CLIENT_CERT_SESS | (0 if tls.session_reused else proxy_tlvs.CLIENT_CERT_CONN)
        verify = 0
        facts.append((proxy_tlvs.SSL_CN, _common_name(tls.getpeercert())))
    inner = proxy_tlvs.join_tlvs((kind, text.encode()) for kind, text in facts if text)
    return struct.pack("!BI", client, verify) + inner


def _common_name(certificate: Any) -> str | None:
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else None
