"""Services of protocols: their life, worker factories, and how they are told that the server drains."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World, client_context, eventually, observed_server, server_context, settled

import prefork
from prefork.config import Settings
from prefork.errors import ServiceError
from prefork.events import Event, HandlerFailed, WorkerFailed
from prefork.net.handlers import classify
from prefork.worker.lifespan import start_service


@pytest.fixture(params=[flavour for flavour in FLAVOURS if flavour != "no-epoll"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


class Peers:
    """A server in this loop, its events, and clients of it."""

    def __init__(self, handler: Any, **options: Any) -> None:
        self.events: list[Event] = []
        self.tls = "tls" in options
        self.server = observed_server(handler, self.events.append, **options)

    async def connect(self, number: int = 1) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Connect some clients, and wait until the server has all of them."""
        before = self.server.connections
        tls: dict[str, Any] = {"ssl": client_context(), "server_hostname": "localhost"} if self.tls else {}
        where = self.server.sockets[0].getsockname()
        clients = [await asyncio.open_connection(*where, **tls) for _ in range(number)]
        await eventually(lambda: self.server.connections == before + number)
        return clients


@contextlib.asynccontextmanager
async def serving(handler: Any, **options: Any) -> AsyncIterator[Peers]:
    peers = Peers(handler, **options)
    async with peers.server as server:
        server.listen(0, "127.0.0.1")
        yield peers
        await server.drain(0)


async def read(reader: asyncio.StreamReader) -> bytes:
    return await settled(asyncio.ensure_future(reader.read()))  # type: ignore[no-any-return]  # bytes


class Greeter(asyncio.Protocol):
    """Greets in the name of its service, and says goodbye when it is told."""

    def __init__(self, service: Life) -> None:
        self.service = service

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.service.greeting)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def drain(self) -> Any:
        self.service.calls.append("drain of protocol")
        self.transport.write(b"goodbye\n")
        self.transport.close()


class Life:
    """A lifespan object with protocols, which notes what is called."""

    made: type[Greeter] = Greeter

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.greeting = b""

    async def start(self) -> None:
        await asyncio.sleep(0)
        self.greeting = b"hello\n"
        self.calls.append("start")

    def protocol(self) -> Greeter:
        assert asyncio.get_running_loop()
        self.calls.append("protocol")
        return self.made(self)

    async def drain(self) -> None:
        self.calls.append("drain")
        await asyncio.sleep(0)
        self.calls.append("drained")

    async def stop(self) -> None:
        self.calls.append("stop")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_protocols_are_made_between_start_and_drain_and_stop(world: World, tls: bool) -> None:
    life = Life()
    async with serving(life, **({"tls": server_context()} if tls else {})) as peers:
        clients = await peers.connect(2)
        for reader, _ in clients:
            assert await settled(asyncio.ensure_future(reader.readline())) == b"hello\n"
        draining = asyncio.ensure_future(peers.server.drain(10))
        for reader, writer in clients:
            assert await read(reader) == b"goodbye\n"
            writer.close()
        assert await settled(draining) == 0
    assert life.calls[:3] == ["start", "protocol", "protocol"]
    assert sorted(life.calls[3:-1]) == ["drain", "drain of protocol", "drain of protocol", "drained"]
    assert life.calls[-1] == "stop"
    assert peers.events == []


async def test_a_worker_factory_is_called_once_in_the_loop_and_what_it_returns_is_served(world: World) -> None:
    life = Life()
    calls = 0

    async def make() -> Life:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return life

    server = prefork.TCPServer(make)
    with pytest.raises(RuntimeError, match="a worker factory is started by `async with server`"):
        server.listen(0)
    async with serving(make) as peers:
        for reader, writer in await peers.connect(3):
            assert await settled(asyncio.ensure_future(reader.readline())) == b"hello\n"
            writer.close()
    assert calls == 1
    assert (life.calls[0], life.calls[-1]) == ("start", "stop")


@pytest.mark.parametrize("made", [5, None, Life])
async def test_what_a_worker_factory_returns_must_be_a_service(world: World, made: Any) -> None:
    async def make() -> Any:
        return made

    with pytest.raises(ServiceError, match="^the worker factory returned what cannot be served: "):
        async with prefork.TCPServer(make):
            raise AssertionError("not reached")


async def test_a_worker_that_is_to_stop_cancels_its_factory(world: World) -> None:
    cancelled: list[BaseException] = []

    async def make() -> type[Greeter]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as exc:
            cancelled.append(exc)
            raise
        return Greeter

    stop = asyncio.Event()
    starting = asyncio.ensure_future(start_service(classify(make), stop, "app:make", Settings(), time.monotonic() + 10))
    await asyncio.sleep(0)
    stop.set()
    assert await settled(starting) is None
    assert len(cancelled) == 1


class Raises(Greeter):
    def drain(self) -> None:
        raise ValueError("this one cannot")


class Exits(Greeter):
    async def drain(self) -> None:
        self.transport.close()
        await asyncio.sleep(0)
        raise SystemExit(3)


class Hangs(Greeter):
    """Closes its connection, and then waits for something that never comes."""

    async def drain(self) -> None:
        self.transport.close()
        await asyncio.Event().wait()


class Odd(Life):
    """Makes a protocol of each kind in turn."""

    kinds = (Raises, Exits, Hangs, Greeter)

    def protocol(self) -> Greeter:
        self.calls.append("protocol")
        return self.kinds[(len(self.calls) - 2) % len(self.kinds)](self)


async def test_a_drain_that_fails_or_hangs_concerns_only_its_own_connection(world: World) -> None:
    async with serving(Odd()) as peers:
        clients = [(await peers.connect())[0] for _ in Odd.kinds]
        for reader, _ in clients:
            assert await settled(asyncio.ensure_future(reader.readline())) == b"hello\n"
        draining = asyncio.ensure_future(peers.server.drain(0.3))
        raises, exits, hangs, polite = [reader for reader, _ in clients]
        assert await read(polite) == b"goodbye\n"
        assert await read(exits) == b""
        assert await read(hangs) == b""
        # Of the first the server knows only that it is open, of the third that its drain() has not returned.
        assert await settled(draining) == 2
        with contextlib.suppress(ConnectionResetError):
            assert await read(raises) == b""
        for _, writer in clients:
            writer.close()
    errors = sorted(event.error for event in peers.events if isinstance(event, HandlerFailed))
    assert errors == ["SystemExit: 3", "ValueError: this one cannot"]
    assert len(peers.events) == 2


class BrokenDrain(Life):
    async def drain(self) -> None:
        raise ValueError("not today")


class EndlessDrain(Life):
    async def drain(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("life", "error"),
    [(BrokenDrain, "ValueError: not today"), (EndlessDrain, r"TimeoutError: it did not return within 0\.3\d* s")],
)
async def test_a_drain_of_the_service_that_fails_or_hangs_is_reported_and_the_rest_goes_on(
    world: World, life: type[Life], error: str
) -> None:
    service = life()
    async with serving(service) as peers:
        ((reader, writer),) = await peers.connect()
        draining = asyncio.ensure_future(peers.server.drain(0.3))
        assert await read(reader) == b"hello\ngoodbye\n"
        writer.close()
        assert await settled(draining) == 0
    (failed,) = [event for event in peers.events if isinstance(event, WorkerFailed)]
    assert failed.what == "drain() failed"
    # The time is measured, and so a little more on a machine that is busy.
    assert re.fullmatch(error, failed.error)
    assert service.calls[-1] == "stop"


async def test_the_drain_of_a_stream_service_is_called_before_connections_are_awaited(world: World) -> None:
    class Streams:
        async def start(self) -> None:
            self.told = asyncio.Event()

        async def handle(self, stream: prefork.Stream) -> None:
            await self.told.wait()
            assert stream.draining
            await stream.send(b"told\n")

        def drain(self) -> None:
            self.told.set()

        async def stop(self) -> None: ...

    async with serving(Streams()) as peers:
        ((reader, writer),) = await peers.connect()
        draining = asyncio.ensure_future(peers.server.drain(10))
        assert await read(reader) == b"told\n"
        writer.close()
        assert await settled(draining) == 0


async def test_a_connection_whose_handshake_ends_during_the_drain_is_told_then(world: World) -> None:
    async with serving(Life(), tls=server_context()) as peers:
        where = peers.server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*where)
        await eventually(lambda: peers.server.connections == 1)
        draining = asyncio.ensure_future(peers.server.drain(10))
        await asyncio.sleep(0.05)
        assert not draining.done()
        await settled(asyncio.ensure_future(writer.start_tls(client_context(), server_hostname="localhost")))
        assert await read(reader) == b"hello\ngoodbye\n"
        writer.close()
        assert await settled(draining) == 0


async def test_the_protocol_that_has_taken_over_is_told(world: World) -> None:
    class Upgrades(Greeter):
        def data_received(self, data: bytes) -> None:
            self.transport.set_protocol(Upgraded(self.transport))
            self.transport.write(b"upgraded\n")

    class Upgraded(asyncio.Protocol):
        def __init__(self, transport: Any) -> None:
            self.transport = transport

        async def drain(self) -> None:
            self.transport.write(b"from the second\n")
            await asyncio.sleep(0)
            self.transport.close()

    class Service(Life):
        made = Upgrades

    async with serving(Service()) as peers:
        ((reader, writer),) = await peers.connect()
        writer.write(b"upgrade\n")
        for line in (b"hello\n", b"upgraded\n"):
            assert await settled(asyncio.ensure_future(reader.readline())) == line
        draining = asyncio.ensure_future(peers.server.drain(10))
        assert await read(reader) == b"from the second\n"
        writer.close()
        assert await settled(draining) == 0


def test_a_connection_that_is_aborted_before_its_first_step_is_closed(world: World) -> None:
    """Its task is cancelled before it has begun, so that nothing in it runs."""

    async def main() -> None:
        async with serving(asyncio.Protocol) as peers:
            ours, theirs = world.sockets()
            peers.server.adopt(ours, ("127.0.0.1", 1))
            peers.server.abort_clients()
            await eventually(lambda: peers.server.connections == 0)
            with theirs:
                assert await settled(asyncio.get_running_loop().sock_recv(theirs, 1)) == b""

    world.run(main)
