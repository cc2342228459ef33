"""The facts of a PROXY header, of either version, as values; how they are read and written stands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from . import proxy_tlvs
from .proxy_tlvs import ProxyTLS, only, parse_ssl

#: An address as getpeername(2) gives it: of IPv4, of IPv6, or the path of a unix socket.
ProxyAddress: TypeAlias = "tuple[str, int] | tuple[str, int, int, int] | bytes"


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a balancer says of the connection that it passes on (the PROXY protocol): `stream.proxy`.

    All bytes of the TLVs are as they came. The balancer took many from its client, which may have written anything:
    decode them with care, and escape them before they are logged.
    """

    version: Literal[1, 2]
    """Of the protocol: 1 is a line of text, 2 is binary."""
    command: Literal["PROXY", "LOCAL"]
    """PROXY for a connection of a client; LOCAL for one of the balancer itself, such as a health check."""
    source: ProxyAddress | None = None
    """The client's address; None if the real one holds: LOCAL, UNKNOWN, unspecified.

    Like getpeername's: (host, port), (host, port, 0, 0) of IPv6, or the path of a unix socket as bytes (b"" if it has
    none, with a NUL in front if it is abstract).
    """
    destination: ProxyAddress | None = None
    """The address that the client has connected to, in the same form."""
    tlvs: tuple[tuple[int, bytes], ...] = ()
    """Type and value of each TLV in its order; () of version 1."""
    length: int = 0
    """Bytes of the header on the wire."""

    @property
    def alpn(self) -> bytes | None:
        """The application protocol, as in b"h2" (RFC 7301)."""
        return only(self.tlvs, proxy_tlvs.ALPN)

    @property
    def authority(self) -> bytes | None:
        """The host name that the client asked for; with TLS its SNI. Chosen by the client."""
        return only(self.tlvs, proxy_tlvs.AUTHORITY)

    @property
    def unique_id(self) -> bytes | None:
        """What the balancer calls this connection, up to 128 bytes."""
        return only(self.tlvs, proxy_tlvs.UNIQUE_ID)

    @property
    def netns(self) -> bytes | None:
        """The name of the balancer's network namespace."""
        return only(self.tlvs, proxy_tlvs.NETNS)

    @property
    def ssl(self) -> ProxyTLS | None:
        """The facts of the client's TLS, which ended at the balancer."""
        value = only(self.tlvs, proxy_tlvs.SSL)
        return None if value is None else parse_ssl(value)

    @property
    def aws_vpc_endpoint_id(self) -> bytes | None:
        """The AWS VPC endpoint that the client came through, as in b"vpce-08d2bf15fac5001c9"."""
        return only(self.tlvs, proxy_tlvs.AWS, proxy_tlvs.AWS_VPC_ENDPOINT_ID)

    @property
    def azure_private_endpoint_id(self) -> bytes | None:
        """The link id of the Azure private endpoint, four bytes: `int.from_bytes(value, "little")`."""
        return only(self.tlvs, proxy_tlvs.AZURE, proxy_tlvs.AZURE_LINK_ID)

    @property
    def google_psc_connection_id(self) -> bytes | None:
        """The connection id of Google's Private Service Connect, eight bytes: `int.from_bytes(value, "big")`."""
        return only(self.tlvs, proxy_tlvs.GOOGLE)

    @property
    def crc32c(self) -> bool:
        """Whether the header had a checksum. A header with a wrong one is refused before a handler sees it."""
        return only(self.tlvs, proxy_tlvs.CRC32C) is not None
