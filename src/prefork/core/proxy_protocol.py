"""Read the header of the PROXY protocol at the start of a connection, of the versions that are accepted.

Pure: bytes in, facts out. Which peers may send one, and how long it may take, are decided elsewhere.
"""

from __future__ import annotations

import enum

from .proxy_header import ProxyAddress as ProxyAddress
from .proxy_header import ProxyHeader as ProxyHeader
from .proxy_tlvs import ProxyHeaderError as ProxyHeaderError
from .proxy_tlvs import ProxyTLS as ProxyTLS
from .proxy_v1 import scan_v1
from .proxy_v2 import BLOCK_LIMIT, HEAD, SIGNATURE, scan_v2

#: Bytes of the longest header that is accepted: what to read at most before a header is complete.
LENGTH_LIMIT = HEAD.size + BLOCK_LIMIT
_TLS_HANDSHAKE = b"\x16"


class Accept(enum.Enum):
    """The versions of the header that are accepted."""

    V1 = "v1"
    V2 = "v2"
    ANY = "any"


def scan(data: bytes, accept: Accept) -> ProxyHeader | None:
    """Return the header at the start of `data`; what is behind it is the connection's own.

    None while `data` is only the beginning of a header: then every byte of it belongs to the header, and more must
    come. Raises ProxyHeaderError as soon as the bytes cannot become a header that is accepted.
    """
    if not data:
        return None
    first = data[:1]
    if first == b"P":
        if accept is Accept.V2:
            raise ProxyHeaderError("the bytes begin like version 1, and version 2 is expected")
        return scan_v1(data)
    if first == SIGNATURE[:1]:
        if accept is Accept.V1:
            raise ProxyHeaderError("the bytes begin like version 2, and version 1 is expected")
        return scan_v2(data)
    if first == _TLS_HANDSHAKE:
        raise ProxyHeaderError("there is no header: the bytes begin like TLS")
    raise ProxyHeaderError("there is no header")
