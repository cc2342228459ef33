"""Connections that begin with a PROXY header, for each kind of handler: what is read, believed and refused."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import Serving, World, client_context, eventually, observed_server, server_context

import prefork
from prefork.config import Limits
from prefork.core.account import CloseReason, Counters
from prefork.core.ended_connection import EndedConnection
from prefork.events import ConnectionRefused, ProxyHeaderMalformed, ProxyHeaderMissing

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 51234 443\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14" + bytes([203, 0, 113, 7, 192, 0, 2, 1]) + b"\xc8\x22\x01\xbb"
V2 += b"\xe1\0\x05hello"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x03abc"
UNKNOWN = b"PROXY UNKNOWN\r\n"
CLIENT = ("203.0.113.7", 51234)
SHORT = 0.05


async def stream_handler(stream: prefork.Stream) -> None:
    await stream.send(f"{stream.peer} {stream.proxy is not None} {stream.get_extra_info('proxy_peer')}\n".encode())
    while data := await stream.read(1 << 16):
        await stream.send(data)


async def reader_writer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, port = writer.get_extra_info("peername")[:2]
    has_header = isinstance(writer.get_extra_info("proxy"), prefork.ProxyHeader)
    writer.write(f"{host}:{port} {has_header} {writer.get_extra_info('proxy_peer')}\n".encode())
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


class Echoes(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        host, port = transport.get_extra_info("peername")[:2]
        assert transport.get_extra_info("socket").getpeername()[:2] == (host, port)
        has_header = transport.get_extra_info("proxy") is not None
        transport.write(f"{host}:{port} {has_header} {transport.get_extra_info('proxy_peer')}\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


HANDLERS = [stream_handler, reader_writer, Echoes]


@pytest.fixture(params=["asyncio", "uvloop"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


def behind(handler: Any, limits: Limits | None = None, tls: bool = False, **options: Any) -> Serving:
    """Return a server that trusts this machine."""
    serving = Serving(handler, limits or Limits(), tls)
    options = {"proxy_protocol": "any", "proxy_from": "127.0.0.0/8"} | options
    context = server_context() if tls else None
    serving.server = observed_server(handler, serving.events.append, limits=limits, tls=context, **options)
    return serving


def counts(serving: Serving) -> Counters:
    return Counters(serving.server._account._cells)


def ends(serving: Serving) -> dict[CloseReason, int]:
    """Return the reasons of the connections that have ended."""
    return {reason: count for reason, count in counts(serving).closed.items() if count}


async def echoed(serving: Serving, *parts: bytes, end: bytes = b"ping") -> tuple[str, bytes]:
    """Send each part for itself; return what the handler says of the connection, and what it sends back."""
    with serving.connect_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        for part in parts:
            await loop.sock_sendall(sock, part)
            if len(parts) > 1:
                await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(sock=sock)
        line = await reader.readline()
        peer = writer.get_extra_info("sockname")
        back = await reader.readexactly(len(end)) if end else b""
        writer.close()
    return line.decode().strip().replace(str(peer), "PROXY"), back


@pytest.mark.parametrize("handler", HANDLERS)
async def test_the_handler_has_the_claimed_peer_and_what_follows_the_header(world: World, handler: Any) -> None:
    async with behind(handler) as serving:
        for header in (V1, V2):
            assert await echoed(serving, header + b"ping") == ("203.0.113.7:51234 True PROXY", b"ping")
            bytewise = [bytes([each]) for each in header + b"ping"]
            assert await echoed(serving, *bytewise) == ("203.0.113.7:51234 True PROXY", b"ping")
        for header in (LOCAL, UNKNOWN):
            line, back = await echoed(serving, header + b"ping")
            host, has_header, proxy = line.split(" ", 2)
            assert (has_header, back) == ("True", b"ping")
            assert proxy == "PROXY"
            assert host.startswith("127.0.0.1:")
        # A second header is the client's.
        assert await echoed(serving, V1 + V2, end=V2) == ("203.0.113.7:51234 True PROXY", V2)
        await eventually(lambda: not serving.server.connections, "the end")
        assert ends(serving) == {CloseReason.DONE: 7}


@pytest.mark.parametrize("rounds", [20, pytest.param(2000, marks=pytest.mark.slow)])
async def test_the_cuts_between_segments_do_not_matter(world: World, rounds: int) -> None:
    data = bytes(range(256)) * 4
    async with behind(stream_handler) as serving:
        for number in range(rounds):
            sent = (V1, V2, LOCAL, UNKNOWN)[number % 4] + data
            cuts = sorted(random.sample(range(1, len(sent)), 1 + number % 7))
            parts = [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
            line, back = await echoed(serving, *parts, end=data)
            assert back == data
            assert line.endswith(" True PROXY")
        assert set(ends(serving)) <= {CloseReason.DONE}


def speak_tls(where: Any, header: bytes, step: int) -> bytes:
    """Send `header` and the ClientHello in pieces of `step` bytes; return the first line that comes over TLS."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    pipe = client_context().wrap_bio(received, sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        pipe.do_handshake()
    with socket.create_connection(where, timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = header + sent.read()
        for at in range(0, len(first), step):
            sock.sendall(first[at : at + step])
        line = b""
        while not line.endswith(b"\n"):
            received.write(sock.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                pipe.do_handshake()
                sock.sendall(sent.read())
                line += pipe.read(1000)
        return line


@pytest.mark.parametrize("handler", [stream_handler, Echoes])
async def test_tls_begins_behind_the_header(world: World, handler: Any) -> None:
    """The ClientHello is in the segment of the header, or both come byte by byte."""
    async with behind(handler, tls=True) as serving:
        for step in (1 << 16, 1):
            line = await asyncio.to_thread(speak_tls, serving.where, V2, step)
            assert line.startswith(b"203.0.113.7:51234 True ")
        # Inside of TLS a header is data, and outside it is required.
        reader, writer = await serving.connect(ssl=None)
        writer.write(V1[:5])
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert CloseReason.HANDSHAKE_FAILED not in ends(serving)


async def refused(serving: Serving, data: bytes, end: bool = False) -> bytes:
    """Send `data` and return what comes until the server closes or resets the connection."""
    with serving.connect_socket() as sock:
        loop = asyncio.get_running_loop()
        received = b""
        try:
            await loop.sock_sendall(sock, data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            while chunk := await loop.sock_recv(sock, 1000):
                received += chunk
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize("handler", HANDLERS)
async def test_nothing_is_guessed_and_nothing_sent_before_the_header(world: World, handler: Any) -> None:
    async with behind(handler, Limits(refusal=b"421 busy\r\n")) as serving:
        for data in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", V1.replace(b"443", b"0443"), V2[:12] + b"\x30"):
            assert await refused(serving, data) == b""
        assert await refused(serving, V2[:20], end=True) == b""
        assert ends(serving) == {CloseReason.PROXY_MALFORMED: 5}
        reasons = serving.reasons(ProxyHeaderMalformed)
        assert len(reasons) == 5
        assert reasons[-1] == "the connection ended within the header"
        # A check that only connects is no fault.
        serving.events.clear()
        assert await refused(serving, b"", end=True) == b""
        await eventually(lambda: not serving.server.connections, "the end")
        assert ends(serving)[CloseReason.DONE] == 1
        assert not [event for event in serving.events if event.level >= 20]


async def test_the_other_version_is_refused(world: World) -> None:
    for version, wrong in (("v1", V2), ("v2", V1)):
        async with behind(stream_handler, proxy_protocol=version) as serving:
            assert await refused(serving, wrong) == b""
            assert ends(serving) == {CloseReason.PROXY_MALFORMED: 1}


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_header_that_does_not_come_has_one_deadline_for_all_of_it(world: World, handler: Any) -> None:
    async with behind(handler, Limits(proxy_timeout=SHORT)) as serving:
        assert await refused(serving, b"") == b""
        silent = [event for event in serving.events if isinstance(event, ProxyHeaderMissing)]
        assert [event.seconds for event in silent] == [SHORT]
        assert "header_placement" in str(silent[0])
        assert "on_first_ack_with_payload" in str(silent[0])
        with serving.connect_socket() as sock:
            sock.setblocking(True)
            # Each byte is in time, and the header is not.
            with contextlib.suppress(ConnectionError):
                for each in V1:
                    sock.sendall(bytes([each]))
                    await asyncio.sleep(SHORT / 4)
        await eventually(lambda: not serving.server.connections, "the end")
        assert ends(serving) == {CloseReason.PROXY_TIMEOUT: 2}
        assert str(serving.events[-1]).endswith(f"no PROXY header within {SHORT:g} s (--proxy-timeout)")


async def test_a_peer_that_is_no_proxy_is_closed_at_once(world: World) -> None:
    async with behind(stream_handler, Limits(refusal=b"421"), proxy_from=["192.0.2.0/24", "unix:"]) as serving:
        for data in (V1, b"hello", b""):
            assert await refused(serving, data) == b""
        assert ends(serving) == {CloseReason.PROXY_UNTRUSTED: 3}
        assert counts(serving).refused == 3
        assert set(serving.reasons(ConnectionRefused)) == {"it is none of the trusted proxies (--proxy-from)"}
        assert not serving.server.connections


async def test_without_the_option_a_header_is_data(world: World) -> None:
    async with Serving(stream_handler, Limits()) as serving:
        line, back = await echoed(serving, V1, end=V1)
        assert line.endswith(" False None")
        assert back == V1


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_unix_socket_is_trusted_by_its_word(world: World, handler: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "trusted")
    async with behind(handler, proxy_from="unix:") as serving:
        with prefork.bind_unix_socket(path) as listener:
            serving.server.add_socket(listener)
            reader, writer = await asyncio.open_unix_connection(path)
            # Byte by byte: each is a buffer of its own in the kernel, and a look may find one of them only.
            for each in V1 + b"x" * 3:
                writer.write(bytes([each]))
                await asyncio.sleep(0)
            writer.write(b"x" * 200_000)
            writer.write_eof()
            assert (await reader.readline()).startswith(b"203.0.113.7:51234 True ")
            assert await reader.read() == b"x" * 200_003
            writer.close()
            await eventually(lambda: not serving.server.connections, "the end")
            assert ends(serving) == {CloseReason.DONE: 1}


async def test_the_word_for_all_addresses_is_not_for_a_unix_socket(world: World, tmp_path: Path) -> None:
    path = str(tmp_path / "untrusted")
    async with behind(stream_handler, proxy_from="anywhere") as serving:
        assert await echoed(serving, V2 + b"ping") == ("203.0.113.7:51234 True PROXY", b"ping")
        with prefork.bind_unix_socket(path) as listener, socket.socket(socket.AF_UNIX) as sock:
            serving.server.add_socket(listener)
            sock.connect(path)
            sock.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(sock, 10) == b""
        await eventually(lambda: not serving.server.connections, "the end")
        assert ends(serving) == {CloseReason.DONE: 1, CloseReason.PROXY_UNTRUSTED: 1}


@pytest.mark.parametrize("handler", [stream_handler, Echoes])
async def test_the_limit_of_an_address_is_about_the_client(world: World, handler: Any) -> None:
    ended: list[EndedConnection] = []
    async with behind(handler, Limits(max_connections_per_ip=2, refusal=b"421 busy\r\n")) as serving:
        serving.server.observers.on_ended = ended.append
        with contextlib.ExitStack() as kept:
            # The proxy itself has no limit.
            waiting = [kept.enter_context(serving.connect_socket()) for _ in range(5)]
            await eventually(lambda: serving.server.connections == 5, "five that wait")
            for sock in waiting[:2]:
                sock.sendall(V1)
            await eventually(lambda: len(serving.server._admission._peers) == 1, "the client")  # type: ignore[attr-defined]  # LocalAdmission
            assert await refused(serving, V2) == b"421 busy\r\n"
            assert ends(serving) == {CloseReason.MAX_CONNECTIONS_PER_IP: 1}
            assert ended[0].address == CLIENT
            assert isinstance(ended[0].proxy, tuple)
            for sock in waiting[2:]:
                sock.sendall(V1.replace(b"203.0.113.7", b"203.0.113.8"))
            await eventually(lambda: ends(serving)[CloseReason.MAX_CONNECTIONS_PER_IP] == 2, "the second refusal")
            events = [str(event) for event in serving.events if isinstance(event, ConnectionRefused)]
            assert events[0].startswith("refused 203.0.113.7:51234: per-address")
            # The proxy's own checks count for no address.
            for _ in range(3):
                check = kept.enter_context(serving.connect_socket())
                check.sendall(LOCAL)
                assert await asyncio.get_running_loop().sock_recv(check, 1000)
        await eventually(lambda: not serving.server.connections, "the end")
        assert not serving.server._admission._peers  # type: ignore[attr-defined]  # LocalAdmission


@pytest.mark.parametrize("handler", [stream_handler, Echoes])
async def test_observers_have_the_client_and_the_proxy(world: World, handler: Any) -> None:
    ended: list[EndedConnection] = []
    told: list[prefork.ServiceEvent] = []
    async with behind(handler) as serving:
        serving.server.observers.on_ended = ended.append
        unsubscribe = prefork.subscribe(told.append)
        with contextlib.closing(serving.connect_socket()) as sock:
            await eventually(lambda: serving.server.connections == 1, "the connection")
            (waiting,) = serving.server.open_connections()
            assert waiting.describe(False).phase == "proxy"
            assert waiting.describe(False).address == sock.getsockname()
            assert not told
            sock.sendall(V1)
            await eventually(lambda: told, "its beginning")
            (connection,) = serving.server.open_connections()
            found = connection.describe(False)
            assert (found.address, found.proxy, found.phase) == (CLIENT, sock.getsockname(), "open")
            proxy = sock.getsockname()
            assert await asyncio.get_running_loop().sock_recv(sock, 100)
        await eventually(lambda: ended, "the end")
        await refused(serving, b"x")
        unsubscribe()
        (first, second) = ended
        assert (first.address, first.proxy, first.local, first.reason) == (CLIENT, proxy, serving.where, "done")
        # Of a protocol on uvloop no bytes are known.
        assert first.received in ((0,) if (handler, world.flavour) == (Echoes, "uvloop") else (len(V1), len(V1) + 1))
        assert (second.proxy, second.local, second.reason) == (None, serving.where, "proxy_malformed")
        opened, closed, never = told
        assert isinstance(opened, prefork.ConnectionOpened)
        assert isinstance(closed, prefork.ConnectionClosed)
        assert isinstance(never, prefork.ConnectionClosed)
        where = f"127.0.0.1:{proxy[1]}"
        assert (opened.peer, opened.proxy) == (closed.peer, closed.proxy) == ("203.0.113.7:51234", where)
        assert (never.id, never.reason) == (0, "proxy_malformed")


@pytest.mark.parametrize("handler", [stream_handler, Echoes])
async def test_one_that_waits_is_drained_kicked_and_served_while_draining(world: World, handler: Any) -> None:
    serving = behind(handler)
    async with serving:
        with serving.connect_socket() as kicked, serving.connect_socket() as late, serving.connect_socket() as silent:
            await eventually(lambda: serving.server.connections == 3, "three that wait")
            for connection in serving.server.open_connections():
                if connection.describe(False).address == kicked.getsockname():
                    connection.abort(CloseReason.KICKED)
            assert ends(serving) == {CloseReason.KICKED: 1}
            draining = asyncio.ensure_future(serving.server.drain(10))
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(late, V1)
            assert (await loop.sock_recv(late, 1000)).startswith(b"203.0.113.7:51234 True")
            late.close()
            silent.shutdown(socket.SHUT_WR)
            assert await draining == 0
        assert ends(serving) == {CloseReason.KICKED: 1, CloseReason.DONE: 2}


async def test_one_that_waits_is_aborted_at_the_end_of_a_drain(world: World) -> None:
    serving = behind(stream_handler)
    async with serving:
        with serving.connect_socket() as sock:
            await eventually(lambda: serving.server.connections == 1, "one that waits")
            assert await serving.server.drain(0) == 1
            assert await asyncio.get_running_loop().sock_recv(sock, 10) == b""
        assert ends(serving) == {CloseReason.DRAIN: 1}


@pytest.mark.parametrize("tls", [False, True])
async def test_the_header_is_no_first_byte_of_the_client(world: World, tls: bool) -> None:
    async with behind(Echoes, Limits(first_byte_timeout=SHORT), tls) as serving:
        if tls:
            await asyncio.to_thread(speak_tls, serving.where, V1, 1 << 16)
            await eventually(lambda: not serving.server.connections, "the end")
        else:
            assert (await refused(serving, V1)).startswith(b"203.0.113.7:51234 True")
            assert ends(serving) == {CloseReason.FIRST_BYTE_TIMEOUT: 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proxy_protocol": "v2"}, "--proxy-protocol v2: name the proxies"),
        ({"proxy_from": "10.0.0.0/8"}, "--proxy-from 10.0.0.0/8: is of no use without"),
        ({"proxy_protocol": "on", "proxy_from": "10.0.0.0/8"}, "proxy_protocol on: must be off, v1, v2 or any"),
        ({"proxy_protocol": "v2", "proxy_from": 7}, "--proxy-from 7: must be text"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(prefork.ConfigError) as caught:
        prefork.TCPServer(stream_handler, **options)
    assert str(caught.value).startswith(message)


async def test_the_path_that_a_proxy_tells_is_printable_in_the_peers_name(world: World) -> None:
    peers: list[str] = []

    async def handle(stream: prefork.Stream) -> None:
        peers.append(stream.peer)
        assert stream.get_extra_info("peername") == b"/run/\n\x1b[31m\xff"

    async with behind(handle) as server:
        _, writer = await server.connect()
        writer.write(prefork.proxy_header((b"/run/\n\x1b[31m\xff", b"/run/app.sock")))
        await eventually(lambda: peers)
        writer.close()
    assert peers == [r"unix:/run/\n\x1b[31m\xff"]
