"""Limits of one server: the number of connections, in total and per address, their rate, and their unsent bytes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from unittest import mock

import pytest
from helpers import streams
from helpers.streams import FLAVOURS, Serving, World, eventually

from prefork import Limits, Stream
from prefork.errors import ConnectionOverflowError
from prefork.events import AcceptPaused, ConnectionAborted, ConnectionRefused
from prefork.net.admission import Blocked, Permit
from prefork.net.handshake_throttle import HandshakeThrottle
from prefork.system.scoreboard import FleetSetting, Scoreboard
from prefork.worker.fleet_admission import FleetAdmission


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


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


async def test_connections_queued_beyond_the_limit_are_refused_before_a_stop(world: World) -> None:
    async with Serving(greet, Limits(max_connections=2, refusal=b"busy\n")) as serving:
        clients = [serving.connect_socket() for _ in range(4)]
        for client in clients[:2]:
            assert await receive(client) == b"hello\n"
        assert await silent(clients[2])
        serving.server.accept_waiting(100)
        serving.server.close()
        for client in clients[2:]:
            assert await receive(client) == b"busy\n"
        assert len(serving.reasons(ConnectionRefused)) == 2
        for client in clients:
            client.close()


async def test_beyond_the_limit_connections_wait_and_are_served_when_others_end(world: World) -> None:
    async with Serving(greet, Limits(max_connections=3)) as serving:
        socks = [serving.connect_socket() for _ in range(8)]
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
        assert "connection limit reached (--max-connections)" in serving.reasons(AcceptPaused)


async def test_beyond_the_limit_connections_get_the_refusal(world: World) -> None:
    limits = Limits(max_connections=2, at_limit="refuse", refusal=b"421 busy\r\n")
    async with Serving(greet, limits) as serving:
        socks = [serving.connect_socket() for _ in range(2)]
        for sock in socks:
            assert await receive(sock) == b"hello\n"
        for _ in range(3):
            with serving.connect_socket() as refused:
                assert await receive(refused) == b"421 busy\r\n"
                assert await receive(refused) == b""
        assert len(serving.reasons(ConnectionRefused)) == 3
        socks.pop().close()
        await eventually(lambda: serving.server.connections == 1)
        socks.append(serving.connect_socket())
        assert await receive(socks[-1]) == b"hello\n"
        for sock in socks:
            sock.close()


async def test_with_tls_a_refused_connection_gets_no_plaintext(world: World) -> None:
    limits = Limits(max_connections=1, at_limit="refuse", refusal=b"421 busy\r\n")
    async with Serving(greet, limits, tls=True) as serving:
        with serving.connect_socket() as first:
            await eventually(lambda: serving.server.connections == 1)
            with serving.connect_socket() as refused:
                assert await receive(refused) in (b"", b"reset")
            first.close()


async def test_one_address_gets_no_more_than_its_limit(world: World) -> None:
    async with Serving(greet, Limits(max_connections_per_ip=2)) as serving:
        greedy = [serving.connect_socket("127.0.0.2") for _ in range(2)]
        for sock in greedy:
            assert await receive(sock) == b"hello\n"
        for _ in range(3):
            with serving.connect_socket("127.0.0.2") as refused:
                assert await receive(refused) in (b"", b"reset")
        with serving.connect_socket("127.0.0.3") as other:
            assert await receive(other) == b"hello\n"
        assert set(serving.reasons(ConnectionRefused)) == {
            "per-address connection limit reached (--max-connections-per-ip)"
        }
        greedy.pop().close()
        await eventually(lambda: serving.server.connections == 1)
        with serving.connect_socket("127.0.0.2") as again:
            assert await receive(again) == b"hello\n"
        greedy.pop().close()


async def test_connections_are_accepted_no_faster_than_the_rate(world: World) -> None:
    loop = asyncio.get_running_loop()
    async with Serving(greet, Limits(accept_rate=20)) as serving:
        began = loop.time()
        socks = [serving.connect_socket() for _ in range(30)]
        for sock in socks:
            assert await receive(sock) == b"hello\n"
            sock.close()
        # A second's worth at once, and the rest one after the other.
        assert loop.time() - began >= 10 / 20 * 0.9


# --- memory -----------------------------------------------------------------------------------------------------------


async def test_beyond_the_budget_the_largest_backlog_is_aborted_first(world: World) -> None:
    """Three slow peers, of which one is owed most; together they are owed more than may be."""
    failed: list[tuple[int, str]] = []

    async def pour(stream: Stream) -> None:
        size = int(await stream.readline())
        try:
            stream.write(bytes(size))
            await stream.drain()
            await stream.read()
        except ConnectionOverflowError as exc:
            failed.append((size, str(exc)))
            raise

    mib = 2**20
    async with Serving(pour, Limits(max_unsent=20 * mib, abort_above=64 * mib)) as serving:
        socks = []
        for size in (8 * mib, 14 * mib, 9 * mib):
            sock = serving.connect_socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.send(b"%d\n" % size)
            socks.append(sock)
        await eventually(lambda: failed, "one of them aborted")
        await asyncio.sleep(0.2)
        ((size, reason),) = failed
        assert size == 14 * mib
        assert "the most of any connection" in reason
        state = serving.server._shared
        assert state is not None
        assert 0 < state.buffered_bytes <= 20 * mib
        assert state.buffered_bytes == sum(each._buffered_bytes() for each in state.backlogged)
        assert len(serving.reasons(ConnectionAborted)) == 1
        for sock in socks:
            sock.close()
        await eventually(lambda: serving.server.connections == 0)
        assert (state.buffered_bytes, len(state.backlogged)) == (0, 0)


async def test_unsent_bytes_are_counted_exactly_however_a_connection_ends(world: World) -> None:
    async def pour(stream: Stream) -> None:
        for _ in range(4):
            await stream.send(bytes(400_000))

    loop = asyncio.get_running_loop()
    async with Serving(pour, Limits(linger_timeout=0.2)) as serving:
        socks = [serving.connect_socket() for _ in range(12)]
        for number, sock in enumerate(socks):
            total = 0
            while total < 1_600_000 * (number % 3) // 2:
                total += len(await loop.sock_recv(sock, 65536))
            sock.close()
        await eventually(lambda: serving.server.connections == 0)
        state = serving.server._shared
        assert state is not None
        assert (state.buffered_bytes, len(state.backlogged)) == (0, 0)


# --- handshakes -------------------------------------------------------------------------------------------------------


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        streams.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


async def test_beyond_the_handshake_limit_connections_wait_to_be_accepted(world: World) -> None:
    limits = Limits(max_handshakes=4, handshake_timeout=30, accept_batch=8)
    # On a slow machine a handshake would end each batch, and no queue would come about.
    with mock.patch("prefork.net.acceptor.BATCH_SECONDS", 60.0):
        async with Serving(greet, limits, tls=True) as serving:
            socks = [serving.connect_socket() for _ in range(60)]
            for sock in socks:
                sock.sendall(client_hello())
            most = 0
            while serving.server.connections < 60:
                await asyncio.sleep(0)
                assert serving.server._shared is not None
                most = max(most, len(serving.server._shared.handshakes._queue))
            assert 4 <= most <= 4 + 8, "a batch may have been accepted before the last one waited"
            assert any("--max-handshakes" in reason for reason in serving.reasons(AcceptPaused))
            for sock in socks:
                sock.close()
            await greeted(serving)


async def greeted(serving: Serving) -> None:
    reader, writer = await asyncio.open_connection(
        *serving.where, ssl=streams.client_context(), server_hostname="localhost"
    )
    assert await reader.readline() == b"hello\n"
    writer.close()


@pytest.mark.parametrize("say", [b"", b"hello"])
async def test_peers_that_stall_their_handshake_block_no_other(world: World, say: bytes) -> None:
    """They say nothing at all, or nothing after their first word, and would hold every place until the deadline."""
    async with Serving(greet, Limits(max_handshakes=4, handshake_timeout=30), tls=True) as serving:
        socks = [serving.connect_socket() for _ in range(40)]
        for sock in socks:
            sock.sendall(client_hello() if say else b"")
        await eventually(lambda: serving.server.connections == 40)
        await asyncio.wait_for(greeted(serving), 5)
        for sock in socks:
            sock.close()


async def test_failed_handshakes_release_their_slots(world: World) -> None:
    async with Serving(greet, Limits(max_handshakes=2), tls=True) as serving:
        for number in range(20):
            sock = serving.connect_socket()
            if number % 2:
                sock.send(b"GET / HTTP/1.0\r\n\r\n")
                assert await receive(sock) != b"hello\n"
            sock.close()
        with pytest.raises((ssl.SSLError, OSError)):
            await asyncio.open_connection(*serving.where, ssl=ssl.create_default_context(), server_hostname="localhost")
        await greeted(serving)


async def test_each_loop_iteration_does_one_handshake_step(world: World) -> None:
    loop = asyncio.get_running_loop()
    throttle = HandshakeThrottle(loop, 100)
    turns: list[int] = []
    steps: list[int] = []

    def turn() -> None:
        turns.append(len(steps))
        if len(steps) < 30:
            loop.call_soon(turn)

    async def shake_hands(number: int) -> None:
        for _ in range(3):
            await throttle.acquire_turn()
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


async def test_an_accept_that_the_limit_blocks_gives_its_rate_token_back(world: World) -> None:
    scoreboard = Scoreboard(1)
    scoreboard.publish({1: 0}, {})
    scoreboard.settings[FleetSetting.ACCEPT_RATE] = 2000
    scoreboard.settings[FleetSetting.MAX_CONNECTIONS] = 1
    admission = FleetAdmission(scoreboard, scoreboard.row(1), asyncio.get_running_loop(), refuses=False)
    assert admission.try_acquire() is Permit.GRANTED
    peer = admission.commit(("127.0.0.1", 5000))
    assert peer is None
    for _ in range(5):
        assert isinstance(admission.try_acquire(), Blocked)
    admission.release(peer)
    assert admission.try_acquire() is Permit.GRANTED, "one of the two tokens of this second is left"
    admission.close()
