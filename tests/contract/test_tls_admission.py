"""A client that is refused in the TLS handshake never reaches the service, of whatever kind it is, and one that is not
is described to it: by certificates of clients, ALPN, and strict server names."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.certificates import EC, Certificates, client, contexts, presenting
from helpers.streams import FLAVOURS, World, eventually, observed_server, settled
from helpers.support import rounds

import prefork
from prefork.events import Event, HandshakeFailed
from prefork.system.tls_contexts import TLSContexts
from prefork.system.tls_files import read_files

NAMES = ("a.test", "*.b.test")


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


@pytest.fixture
def server_contexts(tmp_path: Path) -> TLSContexts:
    """Those of a server that asks for everything."""
    certificates = Certificates(tmp_path)
    files = read_files([certificates.pair(name, kind=EC) for name in NAMES], certificates.authorities("one"))
    return contexts(files, client="required", alpn=("h2", "echo"), strict_sni=True)


class Service:
    """Notes what it is told of each connection, and every byte of it."""

    def __init__(self) -> None:
        self.connections: list[tuple[str | None, str | None, Any]] = []
        self.received: list[bytes] = []

    async def handle(self, stream: prefork.Stream) -> None:
        assert stream.tls is not None
        self.connections.append((stream.tls.sni, stream.tls.alpn, stream.tls.peer_certificate))
        self.received.append(await stream.read(100))
        await stream.send(b"done")

    def protocol(self) -> asyncio.Protocol:
        service = self

        class Noting(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport
                found = transport.get_extra_info("ssl_object")
                service.connections.append((found.sni, found.selected_alpn_protocol(), found.getpeercert()))

            def data_received(self, data: bytes) -> None:
                service.received.append(data)
                self.transport.write(b"done")

        return Noting()


async def ask(port: int, context: ssl.SSLContext, name: str) -> bytes:
    """Return the answer of the service; b"" if there is none because the handshake failed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.write(b"hello")
        # With TLS 1.3 a client hears of its refusal after its own handshake.
        answer = await settled(asyncio.ensure_future(reader.read(4)))
        writer.close()
        return answer
    except (ssl.SSLError, ConnectionError):
        return b""


@pytest.mark.parametrize("kind", ["handle", "protocol"])
async def test_only_a_client_that_meets_every_condition_reaches_the_service(
    world: World, server_contexts: TLSContexts, kind: str
) -> None:
    if kind == "protocol" and world.flavour == "no-epoll":
        return
    service, events = Service(), list[Event]()
    handler: Any = getattr(service, kind)
    good, bad_alpn, anonymous, stranger = presenting("one"), presenting("one"), client(), presenting("two")
    for context, protocol in ((good, "echo"), (bad_alpn, "spdy/1"), (anonymous, "h2"), (stranger, "h2")):
        context.set_alpn_protocols([protocol])
    refused: list[tuple[ssl.SSLContext, str, str]] = [
        (bad_alpn, "a.test", "no application protocol"),
        (anonymous, "a.test", "peer did not return a certificate"),
        (stranger, "a.test", "certificate verify failed"),
        (good, "c.test", "no certificate for the name"),
    ]
    async with observed_server(handler, events.append, tls=server_contexts.main) as server:
        server.listen(0, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        for context, name, reason in refused:
            assert await ask(port, context, name) == b""
            await eventually(lambda: any(isinstance(each, HandshakeFailed) for each in events))
            (event,) = events
            assert reason in str(event).lower().replace("_", " ")
            events.clear()
        assert (service.connections, service.received) == ([], [])
        assert await ask(port, good, "x.b.test") == b"done"
        ((sni, alpn, certificate),) = service.connections
        assert (sni, alpn, service.received) == ("x.b.test", "echo", [b"hello"])
        assert ("email", "client@example.test") in certificate["subjectAltName"]
        await server.drain(0)


@rounds(4, 200)
@pytest.mark.parametrize("kind", ["handle", "protocol"])
async def test_no_byte_ahead_of_the_handshake_reaches_the_service(
    world: World, server_contexts: TLSContexts, kind: str, rounds: int
) -> None:
    """CVE-2023-40217: a client that sent plaintext and left at once was served without a certificate."""
    if kind == "protocol" and world.flavour == "no-epoll":
        return
    service, events = Service(), list[Event]()
    handler: Any = getattr(service, kind)
    ends: list[Callable[[socket.socket], object]] = [
        lambda sock: sock.close(),
        lambda sock: sock.shutdown(socket.SHUT_WR),
        lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"),
    ]
    async with observed_server(handler, events.append, tls=server_contexts.main) as server:
        server.listen(0, "127.0.0.1")
        where = server.sockets[0].getsockname()
        for end in ends:
            for turns in range(rounds):
                with socket.create_connection(where) as sock:
                    sock.send(b"DELETE everything\r\n")
                    for _ in range(turns % 20):
                        await asyncio.sleep(0)
                    end(sock)
        await eventually(lambda: not server.connections and len(events) == rounds * len(ends))
        assert (service.connections, service.received) == ([], [])
        assert {type(event) for event in events} == {HandshakeFailed}
        await server.drain(0)
