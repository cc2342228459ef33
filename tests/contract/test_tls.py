"""TLS of one stream: the handshake and what can go wrong in it, both kinds of end, and the upgrade of a plain one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest
from helpers.streams import FLAVOURS, World, client_context, eventually, server_context, settled

from prefork.errors import ConnectionTimeoutError
from prefork.net.stream import Stream, call_when_closed

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


class Client:
    """A TLS client whose every byte is in the test's hands."""

    def __init__(self, sock: socket.socket, version: str = "1.3") -> None:
        self.sock = sock
        context = client_context(VERSIONS[version])
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    def hello(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    async def shake_hands(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.send(self.outgoing.read())
                data = await self.receive()
                if not data:
                    raise ConnectionResetError("no more from the server") from None
                self.incoming.write(data)

    def encrypt(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    async def read(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            try:
                data = self.tls.read(size - len(got))
                if not data:
                    break
                got += data
            except ssl.SSLWantReadError:
                data = await self.receive()
                if not data:
                    break
                self.incoming.write(data)
        return bytes(got)


@pytest.mark.parametrize("version", list(VERSIONS))
async def test_tls_1_2_and_1_3_work(world: World, version: str) -> None:
    async with world.raw() as (stream, sock):
        client = Client(sock, version)
        serving = asyncio.ensure_future(stream.start_tls(server_context()))
        await client.shake_hands()
        # The last flight of the handshake and the first data in one segment.
        await client.send(client.outgoing.read() + client.encrypt(b"first words"))
        await settled(serving)
        assert await stream.readexactly(11) == b"first words"
        assert stream.tls is not None
        assert stream.tls.version == f"TLSv{version}"
        await stream.send(b"answer" * 50_000)
        assert await client.read(300_000) == b"answer" * 50_000
        big = b"0123456789" * 100_000
        sending = asyncio.ensure_future(client.send(client.encrypt(big)))
        assert await stream.readexactly(len(big)) == big
        await sending


async def test_records_that_come_byte_by_byte_are_read(world: World) -> None:
    async with world.raw() as (stream, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(sock)
        serving = asyncio.ensure_future(stream.start_tls(server_context()))
        for byte in client.hello():
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        await client.shake_hands()
        await client.send(client.outgoing.read())
        await settled(serving)
        reading = asyncio.ensure_future(stream.readline())
        for byte in client.encrypt(b"drop by drop\n"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await settled(reading) == b"drop by drop\n"


@pytest.mark.parametrize("how", ["silent", "dribble", "half a hello"])
async def test_the_handshake_has_a_deadline_in_total(world: World, how: str) -> None:
    """No trickle of bytes extends it."""
    world.limit(handshake_timeout=0.3)
    async with world.raw() as (stream, sock):
        hello = Client(sock).hello()

        async def attack() -> None:
            if how == "dribble":
                with contextlib.suppress(OSError):
                    for byte in hello:
                        sock.send(bytes([byte]))
                        await asyncio.sleep(0.02)
            elif how == "half a hello":
                sock.send(hello[: len(hello) // 2])

        attacking = asyncio.ensure_future(attack())
        started = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionTimeoutError):
            await stream.start_tls(server_context())
        # uvloop counts whole milliseconds.
        assert asyncio.get_running_loop().time() - started >= 0.298
        assert stream.is_closing()
        attacking.cancel()


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", bytes(range(256)) * 20, b"\x16\x03\x01"],
)
async def test_plaintext_on_a_tls_port_ends_the_handshake(world: World, garbage: bytes) -> None:
    async with world.raw() as (stream, sock):
        sock.send(garbage)
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await stream.start_tls(server_context())
        stream.close()
        received = bytearray()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            while chunk := await settled(asyncio.ensure_future(loop.sock_recv(sock, 4096))):
                received += chunk
        # An alert (type 21), or nothing at all.
        assert received[:1] in (b"", b"\x15")


async def test_start_tls_refuses_plaintext_sent_ahead(world: World) -> None:
    """Commands injected before TLS begins must not be obeyed as if TLS had protected them."""
    async with world.raw() as (stream, sock):
        sock.send(b"STARTTLS\r\nDELETE everything\r\n")
        assert await stream.readline() == b"STARTTLS\r\n"
        with pytest.raises(ConnectionAbortedError, match="plaintext"):
            await stream.start_tls(server_context())
        assert stream.is_closing()
        assert await stream.read() == b""


async def test_start_tls_without_a_context_is_an_error_of_the_caller(world: World) -> None:
    async with world.raw() as (stream, _):
        with pytest.raises(TypeError, match=r"sslcontext is expected to be an instance of ssl\.SSLContext, got 'ctx'"):
            await stream.start_tls("ctx")  # type: ignore[arg-type]  # what an untyped program may give
        assert not stream.is_closing()


async def test_start_tls_after_a_plain_greeting(world: World) -> None:
    async with world.raw() as (stream, sock):
        client = Client(sock)
        loop = asyncio.get_running_loop()

        async def serve() -> None:
            assert await stream.readline() == b"STARTTLS\r\n"
            stream.write(b"220 go ahead\r\n")
            await stream.start_tls(server_context())
            stream.write(b"secret")
            assert await stream.readexactly(2) == b"ok"
            with pytest.raises(RuntimeError, match="already"):
                await stream.start_tls(server_context())

        serving = asyncio.ensure_future(serve())
        await client.send(b"STARTTLS\r\n")
        assert await loop.sock_recv(sock, 100) == b"220 go ahead\r\n"
        await client.shake_hands()
        await client.send(client.outgoing.read())
        await client.send(client.encrypt(b"ok"))
        assert await client.read(6) == b"secret"
        await settled(serving)


@contextlib.contextmanager
def both_ends(world: World) -> Iterator[tuple[Stream, Stream]]:
    """Two streams that are each other's peers."""
    one, other = (world.stream(sock) for sock in world.sockets())
    try:
        yield one, other
    finally:
        one.abort()
        other.abort()


async def test_start_tls_with_a_host_name_is_the_clients_side(world: World) -> None:
    with both_ends(world) as (client, server):
        serving = asyncio.ensure_future(server.start_tls(server_context()))
        await client.start_tls(client_context(), server_hostname="localhost", ssl_shutdown_timeout=0.5)
        await settled(serving)
        assert client.tls is not None
        assert server.tls is not None
        assert client.tls.peer_certificate is not None
        assert server.tls.sni == "localhost"
        await client.send(b"question\n")
        assert await server.readline() == b"question\n"
        await server.send(b"answer\n")
        assert await client.readline() == b"answer\n"
        server.close()
        assert await client.read() == b""
        assert not client.tls.truncated


async def test_a_client_refuses_a_certificate_for_another_name(world: World) -> None:
    with both_ends(world) as (client, server):
        serving = asyncio.ensure_future(server.start_tls(server_context()))
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.start_tls(client_context(), server_hostname="example.org")
        client.close()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await settled(serving)


async def _established(stream: Stream, sock: socket.socket, version: str = "1.3") -> Client:
    client = Client(sock, version)
    serving = asyncio.ensure_future(stream.start_tls(server_context()))
    await client.shake_hands()
    await client.send(client.outgoing.read())
    await settled(serving)
    return client


@pytest.mark.parametrize("version", list(VERSIONS))
async def test_a_clean_end_is_told_from_a_truncation(world: World, version: str) -> None:
    for clean in (True, False):
        async with world.raw() as (stream, sock):
            client = await _established(stream, sock, version)
            data = client.encrypt(b"all of it")
            if clean:
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.unwrap()
                data += client.outgoing.read()
            await client.send(data)
            sock.shutdown(socket.SHUT_WR)
            assert await stream.read() == b"all of it"
            assert stream.tls is not None
            assert stream.tls.truncated is not clean


async def test_a_reset_in_the_middle_of_a_record_raises(world: World) -> None:
    async with world.raw() as (stream, sock):
        client = await _established(stream, sock)
        await client.send(client.encrypt(b"x" * 5000)[:-100])
        reading = asyncio.ensure_future(stream.read(100))
        await asyncio.sleep(0.01)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        with pytest.raises(ConnectionError):
            await settled(reading)


async def test_a_forged_record_ends_the_connection_with_an_alert(world: World) -> None:
    async with world.raw() as (stream, sock):
        client = await _established(stream, sock)
        good = client.encrypt(b"good")
        bad = bytearray(client.encrypt(b"forged"))
        bad[-1] ^= 1
        await client.send(good + bytes(bad))
        with pytest.raises(ConnectionAbortedError, match="TLS"):
            await stream.readexactly(10)


async def test_closing_waits_only_briefly_for_close_notify_of_the_peer(world: World) -> None:
    world.limit(tls_shutdown_timeout=0.1, linger_timeout=30)
    async with world.raw() as (stream, sock):
        client = await _established(stream, sock)
        closed: list[bool] = []
        call_when_closed(stream, lambda: closed.append(True))
        stream.write(b"last words")
        stream.close()
        assert await client.read(10) == b"last words"
        await eventually(lambda: closed, "giving up on the peer")
    assert world.events == []


async def test_close_sends_close_notify(world: World) -> None:
    async with world.raw() as (stream, sock):
        client = await _established(stream, sock)
        stream.write(b"bye")
        stream.close()
        assert await client.read(3) == b"bye"
        while True:
            try:
                # b"" is the close_notify; an end without one raises SSLEOFError.
                assert client.tls.read(1) == b""
                break
            except ssl.SSLWantReadError:
                data = await client.receive()
                if data:
                    client.incoming.write(data)
                else:
                    client.incoming.write_eof()


async def test_nothing_that_came_before_a_handshake_reaches_the_handler(world: World) -> None:
    """Plaintext and an end at once, before any handshake (CVE-2023-40217): reading never gives a byte of it."""
    for ending in ("fin", "rst", "nothing"):
        async with world.raw() as (stream, sock):
            sock.send(b"DELETE everything\r\n")
            if ending == "fin":
                sock.shutdown(socket.SHUT_WR)
            elif ending == "rst":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await stream.start_tls(server_context())
            assert stream.tls is None
            stream.close()
            with contextlib.suppress(ConnectionError):
                assert await stream.read() == b""


async def test_failed_handshakes_leave_nothing_behind(world: World) -> None:
    assert world.server_state is not None
    context = server_context()
    for i in range(60):
        async with world.raw() as (stream, sock):
            sock.send((b"garbage", Client(sock).hello(), b"")[i % 3])
            if i % 2:
                sock.shutdown(socket.SHUT_WR)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await stream.start_tls(context)
            else:
                task = asyncio.ensure_future(stream.start_tls(context))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
    assert len(world.server_state.deadlines) == 0
    assert len(asyncio.all_tasks()) == 1
