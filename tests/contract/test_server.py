"""`TCPServer` in a running loop: what it serves, and that no connection can do anything to another."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World, client_context, eventually, observed_server, server_context, settled

import prefork
from prefork.events import ConnectionLost, Event, HandlerFailed, HandshakeFailed, ReadLimitExceeded, log


@pytest.fixture(params=[flavour for flavour in FLAVOURS if flavour != "no-epoll"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


@contextlib.asynccontextmanager
async def serving(
    handler: Any, emit: Callable[[Event], object] = log, **options: Any
) -> AsyncIterator[tuple[prefork.TCPServer, int]]:
    async with observed_server(handler, emit, **options) as server:
        server.listen(0, "127.0.0.1")
        yield server, server.sockets[0].getsockname()[1]


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def ask(port: int, question: bytes = b"hello\n") -> bytes:
    """One line and its answer, on a connection of its own."""
    reader, writer = await connect(port)
    writer.write(question)
    answer = await settled(asyncio.ensure_future(reader.readline()))
    writer.close()
    await writer.wait_closed()
    return answer


async def echo(stream: prefork.Stream) -> None:
    async for line in stream:
        stream.write(line)


async def asyncio_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo as the example in asyncio's documentation does."""
    while data := await reader.read(100):
        assert writer.get_extra_info("peername")[0] == "127.0.0.1"
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def asyncio_callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Have a task of its own serve the connection, as a callback of asyncio's server may."""
    TASKS.add(asyncio.ensure_future(asyncio_echo(reader, writer)))


TASKS: set[asyncio.Future[None]] = set()


class ProtocolEcho(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        assert transport.get_protocol() is self
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


class Lifespan:
    def __init__(self) -> None:
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def handle(self, stream: prefork.Stream) -> None:
        self.calls.append("handle")
        await echo(stream)

    async def stop(self) -> None:
        self.calls.append("stop")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    "handler",
    [echo, asyncio_echo, asyncio_callback, ProtocolEcho, BufferedEcho, Lifespan()],
    ids=["stream", "asyncio", "callback", "protocol", "buffered", "lifespan"],
)
async def test_every_kind_of_handler_serves(world: World, handler: object, tls: bool) -> None:
    async with serving(handler, tls=server_context() if tls else None) as (server, port):
        ssl = client_context() if tls else None
        name = "localhost" if tls else None
        clients = [await asyncio.open_connection("127.0.0.1", port, ssl=ssl, server_hostname=name) for _ in range(10)]
        for _ in range(3):
            for i, (_, writer) in enumerate(clients):
                writer.write(b"line %d\n" % i)
            for i, (reader, _) in enumerate(clients):
                assert await settled(asyncio.ensure_future(reader.readline())) == b"line %d\n" % i
        assert server.connections == 10
        for _, writer in clients:
            writer.close()
        for _, writer in clients:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: server.connections == 0, "all connections closed")


async def test_a_lifespan_object_is_started_before_and_stopped_after(world: World) -> None:
    service = Lifespan()
    async with serving(service) as (_, port):
        assert service.calls == ["start"]
        assert await ask(port) == b"hello\n"
    assert service.calls == ["start", "handle", "stop"]


class Custom(BaseException):
    pass


def _swallowing(seconds: float) -> Any:
    async def swallows_cancellation(stream: prefork.Stream) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(seconds)
                return

    return swallows_cancellation


@pytest.mark.parametrize("exception", [ValueError, Custom, SystemExit, asyncio.CancelledError, StopAsyncIteration])
async def test_what_a_handler_raises_ends_only_its_own_connection(world: World, exception: type[BaseException]) -> None:
    events: list[Event] = []

    async def handle(stream: prefork.Stream) -> None:
        async for line in stream:
            if line == b"raise\n":
                raise exception("no\nway")
            stream.write(line)

    async with serving(handle, emit=events.append) as (server, port):
        bystander_reader, bystander_writer = await connect(port)
        for _ in range(10):
            assert await ask(port, b"raise\n") == b""
        bystander_writer.write(b"still here\n")
        assert await settled(asyncio.ensure_future(bystander_reader.readline())) == b"still here\n"
        bystander_writer.close()
        await eventually(lambda: server.connections == 0)
        assert len(asyncio.all_tasks()) <= 2
    if exception is asyncio.CancelledError:
        assert events == []
    else:
        assert len(events) == 10
        for event in events:
            assert isinstance(event, HandlerFailed)
            assert exception.__name__ in str(event)
            assert "\n" not in str(event)
            assert "in handle" in event.traceback


async def test_a_handler_that_raises_keyboard_interrupt_ends_only_its_connection(world: World) -> None:
    """A worker ignores SIGINT, so there it can only be the handler's own."""
    events: list[Event] = []

    async def handle(stream: prefork.Stream) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        async with serving(handle, emit=events.append) as (_, port):
            assert await ask(port) == b""
    finally:
        signal.signal(signal.SIGINT, before)
    assert [type(event) for event in events] == [HandlerFailed]


async def test_a_connection_counts_before_its_handler_runs(world: World) -> None:
    """A handler's own limit counts its connection, and a drain waits for the handler that asks for the drain."""
    seen: list[object] = []

    async def handle(stream: prefork.Stream) -> None:
        seen.append(server.connections)
        seen.append(await server.drain(0.1))

    server: prefork.TCPServer

    async with serving(handle) as (server, port):
        reader, writer = await connect(port)
        assert await settled(asyncio.ensure_future(_the_end(reader))) == b""
        writer.close()
        await eventually(lambda: server.connections == 0)
    assert seen == [1, 1] or seen == [1]


async def _the_end(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def test_a_handler_may_stop_the_server_while_what_waits_is_accepted(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        server.close()

    server: prefork.TCPServer

    async with serving(handle) as (server, _):
        server.listen(0, "127.0.0.1")
        clients = [socket.create_connection(each.getsockname()) for each in server.sockets]
        server.accept_waiting(10)
        await settled(asyncio.ensure_future(server.serve_forever()))
        for client in clients:
            client.close()


async def test_no_connection_sees_the_context_variables_of_another(world: World) -> None:
    """Also where its place was made by the end of that one."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    async def handle(stream: prefork.Stream) -> None:
        seen.append(user.get())
        user.set("somebody")
        await stream.read(1)

    limits = prefork.Limits(max_connections=1, linger_timeout=0.05)
    async with serving(handle, limits=limits) as (_, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for client in clients:
            client.sendall(b"x")
        await eventually(lambda: len(seen) == 3)
        for client in clients:
            client.close()
    assert seen == ["nobody"] * 3


@pytest.mark.parametrize("how", ["dup", "stdin"])
async def test_the_peer_gets_the_end_even_if_another_process_holds_the_socket(world: World, how: str) -> None:
    async def handle(stream: prefork.Stream) -> None:
        sock = stream.get_extra_info("socket")
        if how == "dup":
            kept.append(sock.dup())
        else:
            children.append(subprocess.Popen(["sleep", "30"], stdin=sock.fileno()))
        await stream.read()

    kept: list[socket.socket] = []
    children: list[subprocess.Popen[bytes]] = []

    async with serving(handle) as (_, port):
        reader, writer = await connect(port)
        writer.write_eof()
        assert await settled(asyncio.ensure_future(reader.read())) == b""
        writer.close()
    for sock in kept:
        sock.close()
    for child in children:
        child.kill()
        child.wait()


async def test_errors_of_the_peer_are_no_handler_failures(world: World) -> None:
    events: list[Event] = []

    async def handle(stream: prefork.Stream) -> None:
        size = int(await stream.readline())
        await stream.readexactly(size)

    async with serving(handle, emit=events.append) as (server, port):
        _, writer = await connect(port)
        writer.write(b"10\nshort")
        writer.close()
        _, writer = await connect(port)
        writer.write(b"7" * 100_000 + b"\n")
        await eventually(lambda: len(events) == 2, "two events")
        writer.close()
        _, writer = await connect(port)
        writer.write(b"10\n")
        await asyncio.sleep(0.01)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await eventually(lambda: len(events) == 3, "three events")
        await eventually(lambda: server.connections == 0)
    assert [type(event) for event in events] == [ConnectionLost, ReadLimitExceeded, ConnectionLost]
    assert {event.level for event in events if isinstance(event, ConnectionLost)} == {logging.DEBUG}


async def test_a_handler_that_returns_early_has_its_answer_delivered(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        stream.write(b"x" * 1_000_000 + b"\n")

    async with serving(handle) as (_, port):
        for _ in range(5):
            reader, writer = await connect(port)
            writer.write(b"unread " * 100_000)
            assert len(await settled(asyncio.ensure_future(reader.read()))) == 1_000_001
            writer.transport.abort()


async def test_a_leaked_task_cannot_keep_the_connection(world: World) -> None:
    outcome: list[object] = []
    leaked: list[asyncio.Task[None]] = []

    async def handle(stream: prefork.Stream) -> None:
        async def leak() -> None:
            outcome.append(await stream.read(100))
            stream.write(b"too late")
            try:
                await stream.drain()
            except ConnectionError as exc:
                outcome.append(type(exc))

        leaked.append(asyncio.create_task(leak()))
        await asyncio.sleep(0.01)

    async with serving(handle) as (server, port):
        reader, writer = await connect(port)
        assert await settled(asyncio.ensure_future(reader.read())) == b""
        writer.close()
        await eventually(lambda: server.connections == 0)
        await settled(leaked[0])
    assert outcome == [b"", ConnectionResetError]


class RaisesInConnectionMade(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        raise ValueError("not made")


def _raises() -> asyncio.Protocol:
    raise ValueError("no protocol today")


def _exits() -> asyncio.Protocol:
    raise SystemExit(3)


@pytest.mark.parametrize(
    "factory",
    [_raises, _exits, lambda: object(), RaisesInConnectionMade],
    ids=["raises", "exits", "no protocol", "raises later"],
)
async def test_a_factory_that_fails_closes_its_connection_at_once(world: World, factory: Any) -> None:
    events: list[Event] = []
    fds = len(os.listdir("/proc/self/fd"))
    async with serving(factory, emit=events.append) as (server, port):
        for _ in range(50):
            reader, writer = await connect(port)
            with contextlib.suppress(ConnectionResetError):
                assert await settled(asyncio.ensure_future(reader.read())) == b""
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: server.connections == 0)
    assert len(events) == 50
    assert {type(event) for event in events} == {HandlerFailed}
    # uvloop opens one for itself when it first accepts.
    assert len(os.listdir("/proc/self/fd")) <= fds + 1


async def test_handshakes_that_fail_never_reach_the_handler(world: World) -> None:
    events: list[Event] = []
    reached: list[bytes] = []

    async def handle(stream: prefork.Stream) -> None:
        reached.append(await stream.read())

    limits = prefork.Limits(handshake_timeout=0.3)
    async with serving(handle, tls=server_context(), emit=events.append, limits=limits) as (server, port):
        silent = [await connect(port) for _ in range(5)]
        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"DELETE\r\n"):
            _, writer = await connect(port)
            writer.write(garbage)
            writer.close()
        await eventually(lambda: len(events) == 8, "eight failed handshakes")
        await eventually(lambda: server.connections == 0)
        for _, writer in silent:
            writer.close()
    assert reached == []
    assert {type(event) for event in events} == {HandshakeFailed}
    assert sum("handshake not finished in time" in str(event) for event in events) == 5


async def test_close_ends_serve_forever_and_frees_the_port_while_connections_go_on(world: World) -> None:
    async with serving(echo) as (server, port):
        forever = asyncio.ensure_future(server.serve_forever())
        reader, writer = await connect(port)
        writer.write(b"1\n")
        assert await reader.readline() == b"1\n"
        server.close()
        server.close()
        await settled(forever)
        with pytest.raises(ConnectionRefusedError):
            await connect(port)
        with socket.create_server(("127.0.0.1", port)):
            pass
        writer.write(b"2\n")
        assert await settled(asyncio.ensure_future(reader.readline())) == b"2\n"
        with pytest.raises(RuntimeError, match="closed"):
            server.listen(0)
        writer.close()


async def test_sockets_that_were_handed_over_stay_open(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert listener.getblocking()
        server = prefork.TCPServer(echo)
        server.add_sockets([listener])
        assert not listener.getblocking()
        assert await ask(listener.getsockname()[1]) == b"hello\n"
        assert await server.drain() == 0
        assert listener.fileno() != -1
        # Its queue is there for the next owner.
        reader, writer = await connect(listener.getsockname()[1])
        writer.write(b"patient\n")
        async with prefork.TCPServer(echo) as successor:
            successor.add_socket(listener)
            assert await settled(asyncio.ensure_future(reader.readline())) == b"patient\n"
            writer.close()


async def test_drain_tells_the_handlers_and_waits_for_them(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        assert not stream.draining
        await stream.wait_draining()
        assert stream.draining
        await stream.send(b"goodbye\n")

    server = prefork.TCPServer(handle)
    server.listen(0, "127.0.0.1")
    clients = [await connect(server.sockets[0].getsockname()[1]) for _ in range(3)]
    await eventually(lambda: server.connections == 3)
    draining = asyncio.ensure_future(server.drain(10))
    for reader, writer in clients:
        assert await settled(asyncio.ensure_future(reader.read())) == b"goodbye\n"
        writer.close()
    assert await settled(draining) == 0
    assert await server.drain() == 0


@pytest.mark.parametrize("handler", [echo, ProtocolEcho, _swallowing(0.1)], ids=["stream", "protocol", "swallows"])
async def test_drain_aborts_at_its_timeout_and_says_how_many(world: World, handler: object) -> None:
    server = prefork.TCPServer(handler)
    server.listen(0, "127.0.0.1")
    clients = [await connect(server.sockets[0].getsockname()[1]) for _ in range(4)]
    await eventually(lambda: server.connections == 4)
    assert await settled(asyncio.ensure_future(server.drain(0.05))) == 4
    for reader, writer in clients:
        with contextlib.suppress(ConnectionResetError):
            assert await settled(asyncio.ensure_future(reader.read())) == b""
        writer.close()
    await eventually(lambda: server.connections == 0)


async def test_what_was_accepted_before_the_drain_is_served(world: World) -> None:
    server = prefork.TCPServer(echo)
    server.listen(0, "127.0.0.1")
    clients = [await connect(server.sockets[0].getsockname()[1]) for _ in range(50)]
    for _, writer in clients:
        writer.write(b"unread until now\n")
    await eventually(lambda: server.connections == 50)
    draining = asyncio.ensure_future(server.drain(10))
    for reader, writer in clients:
        assert await settled(asyncio.ensure_future(reader.readline())) == b"unread until now\n"
        writer.close()
    assert await settled(draining) == 0


async def test_connections_under_churn_are_never_mixed_up(world: World) -> None:
    """Descriptors' numbers are reused within a round of events; each connection still hears its own words only."""

    async def handle(stream: prefork.Stream) -> None:
        line = await stream.readline()
        stream.write(line)
        if line.endswith(b"7\n"):
            stream.transport.abort()

    async with serving(handle) as (server, port):

        async def client(name: int) -> int:
            right = 0
            for turn in range(15):
                reader, writer = await connect(port)
                nonce = b"%d-%d\n" % (name, turn)
                writer.write(nonce)
                if turn % 5 == 3:
                    writer.transport.abort()
                    continue
                with contextlib.suppress(ConnectionError):
                    answer = await reader.readline()
                    assert answer in (nonce, b"")
                    right += answer == nonce
                writer.close()
            return right

        results = await asyncio.gather(*(client(name) for name in range(20)))
        assert sum(results) >= 20 * 15 * 0.5
        await eventually(lambda: server.connections == 0)


@pytest.mark.slow
async def test_hundreds_of_connections_at_once(world: World) -> None:
    async with prefork.TCPServer(echo) as server:
        server.listen(0, "127.0.0.1", backlog=1024)
        port = server.sockets[0].getsockname()[1]
        clients = await asyncio.gather(*(connect(port) for _ in range(400)))
        for i, (_, writer) in enumerate(clients):
            writer.write(b"%d\n" % i)
        for i, (reader, _) in enumerate(clients):
            assert await settled(asyncio.ensure_future(reader.readline())) == b"%d\n" % i
        assert server.connections == 400
        for _, writer in clients:
            writer.close()


def test_a_wrong_handler_is_rejected_by_the_constructor() -> None:
    with pytest.raises(prefork.ServiceError):
        prefork.TCPServer(functools.partial)
