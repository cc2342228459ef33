"""Streams for tests: one end is ours, the other an asyncio stream pair, over every kind of connection, on every loop.

The same test runs on all of them; what a combination cannot do it says by its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from prefork.config import Limits
from prefork.events import Event
from prefork.implementation import native
from prefork.net.poller import LoopPoller
from prefork.net.server import TCPServer
from prefork.net.server_state import ServerState
from prefork.net.stream import Stream

FLAVOURS = ["asyncio", "debug", "uvloop"]
if native is None:
    # The compiled core has the one poller, on epoll.
    FLAVOURS.append("no-epoll")
if sys.version_info >= (3, 12):
    FLAVOURS.append("eager")
TRANSPORTS = ["socketpair", "tcp", "unix", "tls"]
DEADLINE = 20.0


@functools.cache
def authority() -> tuple[trustme.CA, trustme.LeafCert]:
    ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
    return ca, ca.issue_cert("localhost", "127.0.0.1", "::1", key_type=trustme.KeyType.ECDSA)


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority()[1].configure_cert(context)
    return context


@functools.cache
def client_context(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    authority()[0].configure_trust(context)
    return context


def observed_server(handler: Any, emit: Callable[[Event], object], **options: Any) -> TCPServer:
    """Return a server that sends its events to `emit` instead of the log."""
    server = TCPServer(handler, **options)
    server._emit = server.observers._emit = emit
    return server


@dataclass
class World:
    """One loop flavour, one transport, and what was observed."""

    flavour: str
    transport: str
    events: list[Event] = field(default_factory=list)
    server_state: ServerState | None = None

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run `main` on a loop of this flavour, under a deadline."""

        async def bounded() -> Any:
            loop = asyncio.get_running_loop()
            failures: list[dict[str, Any]] = []
            loop.set_exception_handler(lambda _, context: failures.append(context))
            if self.flavour == "eager":
                loop.set_task_factory(asyncio.eager_task_factory)
            poller = LoopPoller(loop) if self.flavour == "no-epoll" else None
            self.server_state = ServerState(loop, Limits(), self.events.append, poller)
            try:
                async with asyncio.timeout(DEADLINE):
                    result = await main()
            finally:
                self.server_state.close()
            assert not failures, failures
            return result

        with asyncio.Runner(debug=self.flavour == "debug", loop_factory=self._loop_factory()) as runner:
            return runner.run(bounded())

    def limit(self, **limits: Any) -> None:
        """Set the limits of the connections that are made from now on."""
        assert self.server_state is not None
        self.server_state.limits = Limits(**limits)
        if native is not None:
            self.server_state.poller.set_limits(self.server_state.limits)

    def _loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        if self.flavour == "uvloop":
            import uvloop

            return uvloop.new_event_loop
        return None

    def sockets(self, transport: str | None = None) -> tuple[socket.socket, socket.socket]:
        """(ours, the peer's), connected and non-blocking."""
        kind = transport or self.transport
        if kind == "socketpair":
            ours, theirs = socket.socketpair()
        elif kind == "unix":
            with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
                path = str(Path(folder) / "s")
                listener.bind(path)
                listener.listen()
                theirs = socket.socket(socket.AF_UNIX)
                theirs.connect(path)
                ours, _ = listener.accept()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                theirs = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        return ours, theirs

    def stream(self, ours: socket.socket) -> Stream:
        assert self.server_state is not None
        try:
            address: object = ours.getpeername()
        except OSError:
            address = None
        return Stream(ours, address, self.server_state)

    @contextlib.asynccontextmanager
    async def connected(
        self,
    ) -> AsyncIterator[tuple[Stream, asyncio.StreamReader, asyncio.StreamWriter]]:
        """Our stream, and the peer's reader and writer. Both ends are gone afterwards."""
        ours, theirs = self.sockets()
        stream = self.stream(ours)
        try:
            if self.transport == "tls":
                handshake = asyncio.ensure_future(stream.start_tls(server_context()))
                reader, writer = await asyncio.open_connection(
                    # uvloop's TLS client loses what it holds at the end of input if its reading is paused then.
                    sock=theirs,
                    ssl=client_context(),
                    server_hostname="localhost",
                    limit=1 << 23 if self.flavour == "uvloop" else 1 << 16,
                )
                await handshake
            else:
                reader, writer = await asyncio.open_connection(sock=theirs)
            try:
                yield stream, reader, writer
            finally:
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        finally:
            stream.abort()

    @contextlib.asynccontextmanager
    async def raw(self, transport: str | None = None) -> AsyncIterator[tuple[Stream, socket.socket]]:
        """Our stream, and the peer's bare non-blocking socket."""
        ours, theirs = self.sockets(transport)
        stream = self.stream(ours)
        with theirs:
            try:
                yield stream, theirs
            finally:
                stream.abort()


class Serving:
    """A server of this process, and the events that it emitted."""

    def __init__(self, handler: object, limits: Limits, tls: bool = False) -> None:
        self.events: list[Event] = []
        context = server_context() if tls else None
        self.server = observed_server(handler, self.events.append, limits=limits, tls=context)

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

    async def connect(self, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.where, **options)

    def connect_socket(self, source: str = "127.0.0.1") -> socket.socket:
        """Connect a socket. It then waits in the accept queue, whether the server accepts or not."""
        sock = socket.create_connection(self.where, source_address=(source, 0))
        sock.setblocking(False)
        return sock

    def reasons(self, kind: type[Event]) -> list[str]:
        """Return the reasons of the events of one kind that has them."""
        return [event.reason for event in self.events if isinstance(event, kind)]  # type: ignore[attr-defined]  # it has


async def eventually(condition: Callable[[], object], what: str = "condition") -> None:
    """Wait until `condition` holds, bounded by the test's deadline."""
    try:
        async with asyncio.timeout(DEADLINE / 2):
            while not condition():
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"{what} never came to hold") from None


async def settled(task: Awaitable[Any]) -> Any:
    """What became of `task`, bounded."""
    return await asyncio.wait_for(task, DEADLINE / 2)
