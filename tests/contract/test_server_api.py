"""`TCPServer` with the conventions of `asyncio.Server`: listening, serving, closing."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World, eventually, settled
from helpers.support import free_port

import prefork
from prefork.net import cpython
from prefork.net.acceptor import Acceptor, AcceptorState
from prefork.net.base_server import BaseServer


@pytest.fixture(params=[flavour for flavour in FLAVOURS if flavour != "no-epoll"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


async def echo(stream: prefork.Stream) -> None:
    async for line in stream:
        stream.write(line)


class ProtocolEcho(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def connected(
    server: prefork.TCPServer, count: int = 1
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connections that have been answered once."""
    clients = [await asyncio.open_connection(*server.sockets[0].getsockname()[:2]) for _ in range(count)]
    for reader, writer in clients:
        writer.write(b"hello\n")
        assert await settled(asyncio.ensure_future(reader.readline())) == b"hello\n"
    return clients


async def serves(server: prefork.TCPServer, count: int = 1) -> None:
    for _, writer in await connected(server, count):
        writer.close()


async def ended(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await settled(asyncio.ensure_future(reader.read()))
    return b""


# --- names and types --------------------------------------------------------------------------------------------------


def test_every_public_method_of_asyncios_server_that_applies_is_there() -> None:
    wanted = {name for name in dir(asyncio.Server) if not name.startswith("_")} | {"close_clients", "abort_clients"}
    # The loop is the running one, and accepting starts with the first socket.
    wanted -= {"get_loop", "start_serving"}
    assert wanted <= set(dir(prefork.TCPServer))
    for name in wanted - {"sockets"}:
        theirs, ours = getattr(asyncio.Server, name, None), getattr(prefork.TCPServer, name)
        if theirs is not None:
            assert inspect.iscoroutinefunction(theirs) == inspect.iscoroutinefunction(ours), name


def test_no_public_parameter_is_of_a_private_type() -> None:
    names = ["handler", "tls", "limits", "drain_timeout", "proxy_protocol", "proxy_from"]
    assert list(inspect.signature(prefork.TCPServer).parameters) == names


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (prefork.ConfigError, ValueError),
        (prefork.LineTooLongError, ValueError),
        (prefork.ConnectionTimeoutError, TimeoutError),
        (prefork.ConnectionTimeoutError, ConnectionError),
        (prefork.ConnectionOverflowError, ConnectionError),
        (prefork.BindError, OSError),
        (prefork.ListenerError, OSError),
        (prefork.StreamBusyError, RuntimeError),
    ],
)
def test_each_error_is_the_builtin_one_that_it_is_a_kind_of(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


def test_a_limit_that_cannot_be_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="max-connections"):
        prefork.Limits(max_connections=-1)


# --- listening --------------------------------------------------------------------------------------------------------


async def test_listen_takes_addresses_and_never_looks_up_a_name(world: World) -> None:
    async with prefork.TCPServer(echo, drain_timeout=0) as server:
        assert not server.is_serving()
        with pytest.raises(ValueError, match="listen_host"):
            server.listen(0, "host.example")
        assert server.sockets == ()
        for address in ("127.0.0.1", "localhost"):
            server.listen(0, address)
        assert server.is_serving()
        await serves(server)


async def test_listen_host_looks_a_name_up_without_blocking_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    asked, loop_ran = threading.Event(), threading.Event()
    overlapped: list[bool] = []

    def slow_resolver(host: Any, *rest: Any) -> Any:
        if host != "slow.example":
            return real(host, *rest)
        asked.set()
        overlapped.append(loop_ran.wait(10))
        return real("127.0.0.1", *rest)

    monkeypatch.setattr(socket, "getaddrinfo", slow_resolver)
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        async with prefork.TCPServer(echo, drain_timeout=0) as server:
            listening = asyncio.ensure_future(server.listen_host(0, "slow.example"))
            await eventually(asked.is_set)
            loop_ran.set()
            await listening
            assert overlapped == [True]
            await serves(server)
            with pytest.raises(socket.gaierror):
                await server.listen_host(0, "no-such-host.invalid")


async def test_a_socket_that_does_not_listen_is_refused_at_once(world: World) -> None:
    closed = socket.socket()
    closed.close()
    with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        idle.bind(("127.0.0.1", 0))
        wrong = {idle: "does not listen", datagrams: "is no stream socket", closed: "is no listening socket: bad file"}
        async with prefork.TCPServer(echo, drain_timeout=0) as server:
            server.listen(0, "127.0.0.1")
            with socket.create_server(("127.0.0.1", 0)) as right:
                for sock, message in wrong.items():
                    with pytest.raises(ValueError, match=message):
                        server.add_socket(sock)
                    with pytest.raises(ValueError, match=message):
                        server.add_sockets([right, sock])
                assert right not in server.sockets
            await serves(server)


def test_listen_without_a_running_loop_binds_nothing() -> None:
    port = free_port()
    server = prefork.TCPServer(echo)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no running event loop"):
            server.listen(port, "127.0.0.1")
    socket.create_server(("127.0.0.1", port)).close()


class Life:
    """A lifespan object that notes what is called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    async def start(self) -> None:
        self.called.append("start")

    async def handle(self, stream: prefork.Stream) -> None:
        self.called.append("handle")
        await echo(stream)

    async def stop(self) -> None:
        self.called.append("stop")


async def test_a_lifespan_object_is_served_only_after_its_start(world: World) -> None:
    life = Life()
    server = prefork.TCPServer(life, drain_timeout=0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for use in (lambda: server.listen(0), lambda: server.add_sockets([listener])):
            with pytest.raises(RuntimeError, match="async with"):
                use()
        with pytest.raises(RuntimeError, match="async with"):
            await server.serve_forever()
        async with server:
            server.add_sockets([listener])
            await serves(server)
    assert life.called == ["start", "handle", "stop"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls": "cert.pem"}, "tls cert.pem: must be a prefork.TLS, several of them, or an ssl.SSLContext"),
        ({"tls": []}, "tls []: must be a prefork.TLS, several of them, or an ssl.SSLContext"),
        ({"limits": {}}, "limits {}: must be a prefork.Limits"),
        ({"drain_timeout": -1}, "drain_timeout -1: must be 0 seconds or more"),
        ({"drain_timeout": None}, "drain_timeout None: must be a number of seconds, such as 30 or 2.5"),
        ({"drain_timeout": "x"}, "drain_timeout x: must be a number of seconds, such as 30 or 2.5"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(prefork.ConfigError) as caught:
        prefork.TCPServer(echo, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("port", [70000, -1, "x"])
async def test_a_port_that_is_none_is_named(world: World, port: Any) -> None:
    with pytest.raises(ValueError, match=f"^port {port}: must be "):
        prefork.bind_sockets(port)
    server = prefork.TCPServer(echo)
    with pytest.raises(ValueError, match=f"^port {port}: must be "):
        server.listen(port)


async def test_after_close_nothing_can_be_added(world: World) -> None:
    server = prefork.TCPServer(echo)
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        server.listen(0, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(RuntimeError, match="closed"):
        server.add_socket(listener)
    await settled(asyncio.ensure_future(server.wait_closed()))


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [echo, ProtocolEcho])
async def test_close_stops_accepting_and_wait_closed_waits_for_the_rest(world: World, handler: Any) -> None:
    server = prefork.TCPServer(handler)
    server.listen(0, "127.0.0.1")
    ((reader, writer),) = await connected(server)
    where = server.sockets[0].getsockname()
    waiting = asyncio.ensure_future(server.wait_closed())
    server.close()
    assert (server.is_serving(), server.sockets) == (False, ())
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*where)
    writer.write(b"still\n")
    assert await settled(asyncio.ensure_future(reader.readline())) == b"still\n"
    assert not waiting.done()
    writer.close()
    await settled(waiting)
    assert server.connections == 0
    assert await server.drain() == 0


@pytest.mark.parametrize("handler", [echo, ProtocolEcho])
@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_clients_can_be_closed_and_aborted(world: World, handler: Any, how: str) -> None:
    server = prefork.TCPServer(handler, limits=prefork.Limits(linger_timeout=0.1))
    server.listen(0, "127.0.0.1")
    clients = await connected(server, 3)
    server.close()
    getattr(server, how)()
    for reader, writer in clients:
        assert await ended(reader) == b""
        writer.close()
    await settled(asyncio.ensure_future(server.wait_closed()))


async def test_close_clients_sends_what_was_written(world: World) -> None:
    size = 5_000_000

    async def pour(stream: prefork.Stream) -> None:
        stream.write(bytes(size))
        assert await stream.read() == b"", "the handler sees the end of its input"

    server = prefork.TCPServer(pour)
    server.listen(0, "127.0.0.1")
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await eventually(lambda: server.connections == 1)
    server.close()
    server.close_clients()
    assert len(await ended(reader)) == size
    writer.close()
    await settled(asyncio.ensure_future(server.wait_closed()))


async def test_cancelling_serve_forever_closes_and_drains(world: World) -> None:
    async def polite(stream: prefork.Stream) -> None:
        stream.write(await stream.readline())
        await stream.wait_draining()
        await stream.send(b"goodbye\n")

    server = prefork.TCPServer(polite)
    server.listen(0, "127.0.0.1")
    serving = asyncio.ensure_future(server.serve_forever())
    ((reader, writer),) = await connected(server)
    serving.cancel()
    assert await ended(reader) == b"goodbye\n"
    writer.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving()
    assert server.connections == 0


async def test_cancelling_serve_forever_again_aborts_what_is_open(world: World) -> None:
    server = prefork.TCPServer(echo)
    server.listen(0, "127.0.0.1")
    serving = asyncio.ensure_future(server.serve_forever())
    ((reader, writer),) = await connected(server)
    serving.cancel()
    await eventually(lambda: not server.is_serving())
    assert server.connections == 1
    serving.cancel()
    assert await ended(reader) == b""
    writer.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert server.connections == 0


@pytest.mark.parametrize(
    ("error", "waits"), [(None, True), (asyncio.CancelledError, True), (LookupError, False)], ids=str
)
async def test_leaving_the_block_waits_for_the_drain_timeout_unless_by_an_error(
    world: World, error: type[BaseException] | None, waits: bool
) -> None:
    began = time.monotonic()
    with contextlib.suppress(LookupError, asyncio.CancelledError):
        async with prefork.TCPServer(echo, drain_timeout=0.3) as server:
            server.listen(0, "127.0.0.1")
            ((_, writer),) = await connected(server)
            began = time.monotonic()
            if error is not None:
                raise error
    assert (time.monotonic() - began > 0.25) is waits
    assert server.connections == 0
    writer.close()


# --- accepting --------------------------------------------------------------------------------------------------------


class CountingSocket(socket.socket):
    """A listening socket of the caller's own class."""

    accepted = 0

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self.accepted += 1
        return connection, ("overridden", *address)


@pytest.mark.parametrize("use", ["add_accept_handler", "TCPServer"])
async def test_a_class_that_overrides_accept_has_its_own_called(world: World, use: str) -> None:
    async def peername(stream: prefork.Stream) -> None:
        await stream.send(str(stream.get_extra_info("peername")[0]).encode())

    def handle(connection: socket.socket, address: Any) -> None:
        assert not connection.getblocking()
        connection.send(address[0].encode())
        connection.close()

    async def overridden(listener: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await ended(reader) == b"overridden"
        writer.close()

    with CountingSocket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        if use == "TCPServer":
            async with prefork.TCPServer(peername, drain_timeout=0) as server:
                server.add_socket(listener)
                await overridden(listener)
        else:
            remove = prefork.add_accept_handler(listener, handle)
            await overridden(listener)
            remove()
        assert listener.accepted == 1


async def test_a_python_without_the_private_accept_is_served_by_the_public_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket.accept
    accepted: list[Any] = []

    def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
        accepted.append(real(listener))
        return accepted[-1]

    monkeypatch.setattr(cpython, "_HAS_ACCEPT", False)
    monkeypatch.setattr(socket.socket, "accept", accept)
    async with prefork.TCPServer(echo, drain_timeout=0) as server:
        server.listen(0, "127.0.0.1")
        await serves(server, 10)
    assert len(accepted) == 10


async def test_an_acceptor_makes_only_the_moves_of_its_table(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watching = Acceptor(listener, lambda *_: None)
        watching.close()
        for state in set(AcceptorState) - {AcceptorState.CLOSED}:
            with pytest.raises(RuntimeError, match=f"from CLOSED to {state.name}"):
                watching._enter(state)
        watching.resume()
        watching.accept_waiting(1)
        watching.close()


def test_the_public_server_and_the_workers_are_one() -> None:
    assert issubclass(prefork.TCPServer, BaseServer)
