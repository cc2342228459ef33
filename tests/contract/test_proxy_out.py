"""`prefork.proxy_header` tells what a real connection is: its addresses, and its TLS with a certificate and without."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from helpers.streams import World, authority, observed_server

from prefork import ProxyHeader, Stream, proxy_header
from prefork.core.proxy_protocol import Accept, scan


def read(header: bytes) -> ProxyHeader:
    """Return what a receiver reads."""
    found = scan(header, Accept.V2)
    assert found is not None
    return found


@pytest.fixture
def world() -> World:
    return World("asyncio", "tcp")


async def test_a_plain_stream_tells_its_addresses(world: World) -> None:
    async with world.raw() as (stream, sock):
        found = read(proxy_header(stream))
        assert (found.source, found.destination, found.tlvs) == (sock.getsockname(), sock.getpeername(), ())
        line = proxy_header(stream, version=1).decode("ascii")
        assert line == f"PROXY TCP4 127.0.0.1 127.0.0.1 {sock.getsockname()[1]} {sock.getpeername()[1]}\r\n"
    with pytest.raises(OSError, match="not connected"):
        proxy_header(stream)
    async with world.raw("unix") as (stream, sock):
        found = read(proxy_header(stream))
        assert (found.source, found.destination) == (b"", sock.getpeername().encode())


def contexts(with_certificate: bool, version: ssl.TLSVersion) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server that asks for a certificate, and of a client that has one or has none."""
    ca, certificate = authority()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificate.configure_cert(server)
    ca.configure_trust(server)
    ca.configure_trust(client)
    server.verify_mode = ssl.CERT_OPTIONAL
    client.minimum_version = client.maximum_version = version
    server.set_alpn_protocols(["echo/1"])
    client.set_alpn_protocols(["echo/1", "http/1.1"])
    if with_certificate:
        ca.issue_cert("client@example.org", common_name="A client").configure_cert(client)
    return server, client


class Client:
    """A client that connects twice, the second time with the session of the first."""

    def __init__(self, context: ssl.SSLContext, address: tuple[str, int]) -> None:
        self.context = context
        self.address = address
        self.session: ssl.SSLSession | None = None

    def talk(self) -> object:
        """Connect, wait for the server's byte, and return the address it had."""
        with (
            socket.create_connection(self.address, timeout=20) as plain,
            self.context.wrap_socket(plain, server_hostname="localhost", session=self.session) as sock,
        ):
            assert sock.recv(1) == b"x"
            assert sock.session_reused == (self.session is not None)
            self.session = sock.session
            return sock.getsockname()


@pytest.mark.parametrize("with_certificate", [True, False])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_stream_of_tls_tells_what_the_client_has_used(
    world: World, with_certificate: bool, version: ssl.TLSVersion
) -> None:
    server_side, client_side = contexts(with_certificate, version)
    headers: list[ProxyHeader] = []

    async def handle(stream: Stream) -> None:
        found = read(proxy_header(stream, tlvs=[(5, b"id"), (2, b"another.example")] if headers else ()))
        # The transport that asyncio's handlers see tells the same.
        assert headers or found == read(proxy_header(stream.transport))
        headers.append(found)
        await stream.send(b"x")

    async with observed_server(handle, world.events.append, tls=server_side) as server:
        server.listen(0, "127.0.0.1")
        client = Client(client_side, server.sockets[0].getsockname())
        addresses = [await asyncio.to_thread(client.talk) for _ in range(2)]
        await server.drain(0)
    assert [each.source for each in headers] == addresses
    first, second = headers
    assert (first.alpn, first.authority, second.authority) == (b"echo/1", b"localhost", b"another.example")
    assert (first.unique_id, second.unique_id) == (None, b"id")
    # The certificate was sent on the first connection, and the second has it of its session.
    for each, bits in ((first.ssl, 7), (second.ssl, 5)):
        assert each is not None
        assert each.used
        assert each.version == {ssl.TLSVersion.TLSv1_2: b"TLSv1.2", ssl.TLSVersion.TLSv1_3: b"TLSv1.3"}[version]
        assert b"AES" in (each.cipher or b"") or b"CHACHA" in (each.cipher or b"")
        assert (each.verified, each.common_name) == ((True, b"A client") if with_certificate else (False, None))
        assert (each.client, each.verify) == ((bits, 0) if with_certificate else (1, 1))
