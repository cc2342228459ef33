"""Limits over the connections of one server: how many, of whom, how fast, and how much of theirs it keeps in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from typing import Any

import pytest
from helpers import streams
from helpers.streams import FLAVOURS, World, eventually

from prefork import Limits, Stream
from prefork.errors import ConnectionOverflow
from prefork.events import AcceptPaused, ConnectionAborted, ConnectionRefused, Event
from prefork.net.handshake_throttle import HandshakeThrottle


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


class Serving:
    """A server of this process, and what it has told."""

    def __init__(self, handler: object, limits: Limits, tls: bool = False) -> None:
        self.events: list[Event] = []
        context = streams.server_context() if tls else None
        self.server = streams.observed_server(handler, self.events.append, limits=limits, tls=context)

    async def __aenter__(self) -> Serving:
        await self.server.__aenter__()
        self.server.listen(0, "127.0.0.1")
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.server.drain(0)
        await self.server.__aexit__(*exc)

    @property
    def where(self) -> Any:
        return self.server.sockets[0].getsockname()

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """The kernel accepts it at once; whether we do is another thing."""
        sock = socket.create_connection(self.where, source_address=(source, 0))
        sock.setblocking(False)
        return sock

    def told(self, kind: type[Event]) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, kind)]  # type: ignore[attr-defined]  # all have one


async def greet(stream: Stream) -> None:
    await stream.send(b"hello\n")
    await stream.read()


async def receive(sock: socket.socket, seconds: float = 10.0) -> bytes:
    loop = asyncio.get_running_loop()
    try:
        return await asyncio.wait_for(loop.sock_recv(sock, 1000), seconds)
    except ConnectionResetError:
        return b"reset"


async def silent(sock: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    try:
        await receive(sock, 0.2)
    except TimeoutError:
        return True
    return False


def test_before_a_stop_what_waits_beyond_the_limit_is_refused(world: World) -> None:
    async def main() -> None:
        async with Serving(greet, Limits(max_connections=2, refusal=b"busy\n")) as serving:
            clients = [serving.connect() for _ in range(4)]
            for client in clients[:2]:
                assert await receive(client) == b"hello\n"
            assert await silent(clients[2])
            serving.server.accept_waiting(100)
            serving.server.close()
            for client in clients[2:]:
                assert await receive(client) == b"busy\n"
            assert len(serving.told(ConnectionRefused)) == 2
            for client in clients:
                client.close()

    world.run(main)


def test_beyond_the_limit_connections_wait_and_are_served_when_others_end(world: World) -> None:
    async def main() -> None:
        async with Serving(greet, Limits(max_connections=3)) as serving:
            socks = [serving.connect() for _ in range(8)]
            for sock in socks[:3]:
                assert await receive(sock) == b"hello\n"
            assert all([await silent(sock) for sock in socks[3:5]])
            assert serving.server.connections == 3
            for number in range(5):
                socks[number].close()
                assert await receive(socks[number + 3]) == b"hello\n"
                assert serving.server.connections <= 3
            for sock in socks[5:]:
                sock.close()
            assert "connection limit reached (--max-connections)" in serving.told(AcceptPaused)

    world.run(main)


def test_beyond_the_limit_connections_are_refused_with_a_word(world: World) -> None:
    async def main() -> None:
        limits = Limits(max_connections=2, at_limit="refuse", refusal=b"421 busy\r\n")
        async with Serving(greet, limits) as serving:
            socks = [serving.connect() for _ in range(2)]
            for sock in socks:
                assert await receive(sock) == b"hello\n"
            for _ in range(3):
                with serving.connect() as refused:
                    assert await receive(refused) == b"421 busy\r\n"
                    assert await receive(refused) == b""
            assert len(serving.told(ConnectionRefused)) == 3
            socks.pop().close()
            await eventually(lambda: serving.server.connections == 1)
            socks.append(serving.connect())
            assert await receive(socks[-1]) == b"hello\n"
            for sock in socks:
                sock.close()

    world.run(main)


def test_with_tls_a_refusal_is_no_plain_word(world: World) -> None:
    async def main() -> None:
        limits = Limits(max_connections=1, at_limit="refuse", refusal=b"421 busy\r\n")
        async with Serving(greet, limits, tls=True) as serving:
            with serving.connect() as first:
                await eventually(lambda: serving.server.connections == 1)
                with serving.connect() as refused:
                    assert await receive(refused) in (b"", b"reset")
                first.close()

    world.run(main)


def test_of_one_peer_no_more_than_its_part(world: World) -> None:
    async def main() -> None:
        async with Serving(greet, Limits(max_connections_per_ip=2)) as serving:
            greedy = [serving.connect("127.0.0.2") for _ in range(2)]
            for sock in greedy:
                assert await receive(sock) == b"hello\n"
            for _ in range(3):
                with serving.connect("127.0.0.2") as refused:
                    assert await receive(refused) in (b"", b"reset")
            with serving.connect("127.0.0.3") as other:
                assert await receive(other) == b"hello\n"
            assert set(serving.told(ConnectionRefused)) == {
                "per-address connection limit reached (--max-connections-per-ip)"
            }
            greedy.pop().close()
            await eventually(lambda: serving.server.connections == 1)
            with serving.connect("127.0.0.2") as again:
                assert await receive(again) == b"hello\n"
            greedy.pop().close()

    world.run(main)


def test_no_faster_than_the_rate(world: World) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Serving(greet, Limits(accept_rate=20)) as serving:
            began = loop.time()
            socks = [serving.connect() for _ in range(30)]
            for sock in socks:
                assert await receive(sock) == b"hello\n"
                sock.close()
            # A second's worth at once, and the rest one after the other.
            assert loop.time() - began >= 10 / 20 * 0.9

    world.run(main)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_of_all_that_is_unsent_the_worst_goes_first(world: World) -> None:
    """Three slow peers, of which one is owed most; together they are owed more than may be."""
    failed: list[tuple[int, str]] = []

    async def pour(stream: Stream) -> None:
        size = int(await stream.readline())
        try:
            stream.write(bytes(size))
            await stream.drain()
            await stream.read()
        except ConnectionOverflow as exc:
            failed.append((size, str(exc)))
            raise

    async def main() -> None:
        mib = 2**20
        async with Serving(pour, Limits(max_unsent=20 * mib, abort_above=64 * mib)) as serving:
            socks = []
            for size in (8 * mib, 14 * mib, 9 * mib):
                sock = serving.connect()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.send(b"%d\n" % size)
                socks.append(sock)
            await eventually(lambda: failed, "one of them aborted")
            await asyncio.sleep(0.2)
            ((size, reason),) = failed
            assert size == 14 * mib
            assert "the most of any connection" in reason
            shared = serving.server._shared
            assert shared is not None
            assert 0 < shared.buffered_bytes <= 20 * mib
            assert shared.buffered_bytes == sum(each._buffered_bytes() for each in shared.backlogged)
            assert len(serving.told(ConnectionAborted)) == 1
            for sock in socks:
                sock.close()
            await eventually(lambda: serving.server.connections == 0)
            assert (shared.buffered_bytes, len(shared.backlogged)) == (0, 0)

    world.run(main)


def test_what_is_unsent_is_counted_right_whatever_becomes_of_it(world: World) -> None:
    async def pour(stream: Stream) -> None:
        for _ in range(4):
            await stream.send(bytes(400_000))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Serving(pour, Limits(linger_timeout=0.2)) as serving:
            socks = [serving.connect() for _ in range(12)]
            for number, sock in enumerate(socks):
                total = 0
                while total < 1_600_000 * (number % 3) // 2:
                    total += len(await loop.sock_recv(sock, 65536))
                sock.close()
            await eventually(lambda: serving.server.connections == 0)
            shared = serving.server._shared
            assert shared is not None
            assert (shared.buffered_bytes, len(shared.backlogged)) == (0, 0)

    world.run(main)


# --- handshakes -------------------------------------------------------------------------------------------------------


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        streams.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def test_only_so_many_handshakes_wait_for_their_turn_and_the_rest_to_be_accepted(world: World) -> None:
    async def main() -> None:
        limits = Limits(max_handshakes=4, handshake_timeout=30, accept_batch=8)
        async with Serving(greet, limits, tls=True) as serving:
            socks = [serving.connect() for _ in range(60)]
            for sock in socks:
                sock.sendall(client_hello())
            most = 0
            while serving.server.connections < 60:
                await asyncio.sleep(0)
                assert serving.server._shared is not None
                most = max(most, len(serving.server._shared.handshakes._queue))
            assert 4 <= most <= 4 + 8, "a batch may have been accepted before the last one waited"
            assert any("--max-handshakes" in reason for reason in serving.told(AcceptPaused))
            for sock in socks:
                sock.close()
            await greeted(serving)

    world.run(main)


async def greeted(serving: Serving) -> None:
    reader, writer = await asyncio.open_connection(
        *serving.where, ssl=streams.client_context(), server_hostname="localhost"
    )
    assert await reader.readline() == b"hello\n"
    writer.close()


@pytest.mark.parametrize("say", [b"", b"hello"])
def test_peers_that_do_not_go_on_with_their_handshake_keep_nobody_out(world: World, say: bytes) -> None:
    """They say nothing at all, or nothing after their first word, and would hold every place until the deadline."""

    async def main() -> None:
        async with Serving(greet, Limits(max_handshakes=4, handshake_timeout=30), tls=True) as serving:
            socks = [serving.connect() for _ in range(40)]
            for sock in socks:
                sock.sendall(client_hello() if say else b"")
            await eventually(lambda: serving.server.connections == 40)
            await asyncio.wait_for(greeted(serving), 5)
            for sock in socks:
                sock.close()

    world.run(main)


def test_handshakes_that_fail_give_their_places_back(world: World) -> None:
    async def main() -> None:
        async with Serving(greet, Limits(max_handshakes=2), tls=True) as serving:
            for number in range(20):
                sock = serving.connect()
                if number % 2:
                    sock.send(b"GET / HTTP/1.0\r\n\r\n")
                    assert await receive(sock) != b"hello\n"
                sock.close()
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.open_connection(
                    *serving.where, ssl=ssl.create_default_context(), server_hostname="localhost"
                )
            await greeted(serving)

    world.run(main)


def test_one_step_of_one_handshake_in_each_turn_of_the_loop(world: World) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        turnstile = HandshakeThrottle(loop, 100)
        turns: list[int] = []
        steps: list[int] = []

        def turn() -> None:
            turns.append(len(steps))
            if len(steps) < 30:
                loop.call_soon(turn)

        async def shake_hands(number: int) -> None:
            for _ in range(3):
                await turnstile.acquire_turn()
                steps.append(number)

        loop.call_soon(turn)
        tasks = [asyncio.ensure_future(shake_hands(number)) for number in range(10)]
        tasks.append(asyncio.ensure_future(shake_hands(99)))
        await asyncio.sleep(0)
        # One that is cancelled while it waits gives its turn to the next.
        tasks.pop().cancel()
        await asyncio.gather(*tasks)
        made = [after - before for before, after in itertools.pairwise(turns)]
        assert max(made) <= 2, made
        assert len([number for number in steps if number != 99]) == 30

    world.run(main)
