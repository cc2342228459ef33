"""CPython's own tests of asyncio's streams, for prefork's: `python cpython_streams.py` prints the outcomes as JSON.

The tests are the methods of `test_streams.StreamTests` of the installed Python. They find another `asyncio` in their
module, where one of the three roles is played by prefork: the reader, the client's reader and writer, or the server.
Which outcomes are right is decided in test_asyncio_streams.py.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import json
import socket
import sys
import unittest
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from test.test_asyncio import test_streams

from prefork import Limits, TCPServer
from prefork.events import Event
from prefork.net.reader_writer import ReaderWriter
from prefork.net.server_state import ServerState

_RECEIVE = 1 << 16


def _ignore(event: Event) -> None:
    pass


class Resources:
    """What a test has made, closed before its loop is."""

    streams: ClassVar[list[ReaderWriter]] = []
    states: ClassVar[list[ServerState]] = []

    @classmethod
    def stream(cls, sock: socket.socket, address: object, limit: int, loop: asyncio.AbstractEventLoop) -> ClientStream:
        sock.setblocking(False)
        state = ServerState(loop, Limits(read_limit=limit), _ignore)
        cls.states.append(state)
        stream = ClientStream(sock, address, state)
        cls.streams.append(stream)
        return stream

    @classmethod
    def close(cls) -> None:
        for stream in cls.streams:
            stream.abort()
        for state in cls.states:
            state.close()
        cls.streams.clear()
        cls.states.clear()


class _LostProtocol:
    """The protocol of asyncio's writer, as far as a test calls it."""

    def __init__(self, stream: ReaderWriter) -> None:
        self._stream = stream

    def connection_lost(self, exc: Any) -> None:
        self._stream._fail(exc)


class ClientStream(ReaderWriter):
    __slots__ = ()

    @property
    def _protocol(self) -> _LostProtocol:
        return _LostProtocol(self)


# --- the reader -------------------------------------------------------------------------------------------------------


class Reader:
    """A stream with the peer's end, in the place of `asyncio.StreamReader`.

    What asyncio's transport feeds comes from the peer here. A test looks at what was fed before the loop has run, so
    each read first lets the loop deliver it.
    """

    def __init__(self, limit: int = _RECEIVE, loop: asyncio.AbstractEventLoop | None = None) -> None:
        Limits(read_limit=limit)
        self._loop = asyncio.get_event_loop() if loop is None else loop
        ours, self._peer = socket.socketpair()
        self._stream = Resources.stream(ours, None, limit, self._loop)
        self._has_ended = False

    def feed_data(self, data: bytes) -> None:
        self._peer.sendall(data)

    def feed_eof(self) -> None:
        self._has_ended = True
        self._peer.shutdown(socket.SHUT_WR)

    def set_exception(self, exc: Any) -> None:
        self._stream._fail(exc)

    def exception(self) -> BaseException | None:
        return self._stream.exception()

    def at_eof(self) -> bool:
        self._loop.run_until_complete(_let_loop_deliver())
        return self._stream.at_eof()

    async def read(self, *args: Any, **kwargs: Any) -> bytes:
        return await self._after_delivery(self._stream.read, *args, **kwargs)

    async def readline(self) -> bytes:
        return await self._after_delivery(self._stream.readline)

    async def readexactly(self, n: int) -> bytes:
        return await self._after_delivery(self._stream.readexactly, n)

    async def readuntil(self, *args: Any, **kwargs: Any) -> bytes:
        return await self._after_delivery(self._stream.readuntil, *args, **kwargs)

    async def _after_delivery(self, read: Callable[..., Awaitable[bytes]], *args: Any, **kwargs: Any) -> bytes:
        await _let_loop_deliver()
        return await read(*args, **kwargs)

    @property
    def _waiter(self) -> object:
        return True if self._stream._is_reading() else None

    @property
    def _buffer(self) -> bytes:
        """What was fed and not read. It is read here, and fed again."""
        data = self._loop.run_until_complete(self._take())
        if data and not self._has_ended:
            self.feed_data(data)
        return data

    async def _take(self) -> bytes:
        data = b""
        while True:
            await _let_loop_deliver()
            if self._stream.at_eof() or not self._stream._buffered:
                return data
            data += await self._stream.read(_RECEIVE)


async def _let_loop_deliver() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


# --- client and server ------------------------------------------------------------------------------------------------


async def _client(sock: socket.socket, address: Any, ssl: Any, server_hostname: str | None) -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_connect(sock, address)
    stream = Resources.stream(sock, sock.getpeername(), _RECEIVE, loop)
    if ssl is not None:
        # The client's side, which a ReaderWriter never is.
        await super(ReaderWriter, stream).start_tls(ssl, server_hostname=server_hostname or "localhost")
    return stream, stream


async def open_connection(host: str, port: int, *, ssl: Any = None) -> tuple[Any, Any]:
    (info,) = (await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))[:1]
    return await _client(socket.socket(info[0]), info[4], ssl, host)


async def open_unix_connection(path: str, *, ssl: Any = None, server_hostname: str = "") -> tuple[Any, Any]:
    return await _client(socket.socket(socket.AF_UNIX), path, ssl, server_hostname)


class Server(TCPServer):
    async def start_serving(self) -> None:
        """Do nothing: a server of prefork serves from its first socket on."""


async def start_server(handler: Any, host: Any = None, port: Any = None, *, sock: Any = None) -> Server:
    server = Server(handler)
    if sock is None:
        await server.listen_host(port, host)
    else:
        server.add_socket(sock)
    return server


async def start_unix_server(handler: Any, path: str) -> Server:
    server = Server(handler)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    server.add_socket(sock)
    return server


# --- the tests --------------------------------------------------------------------------------------------------------


class Substitute:
    """The module `asyncio` with some other names."""

    def __init__(self, **names: Any) -> None:
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


#: By role: what tells its tests, and what their `asyncio` has in the place of the real one.
ROLES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "server": (
        ("start_server", "start_unix_server", "_basetest_unhandled"),
        {"start_server": start_server, "start_unix_server": start_unix_server},
    ),
    "client": (
        ("open_connection", "open_unix_connection"),
        {"open_connection": open_connection, "open_unix_connection": open_unix_connection},
    ),
    "reader": (("asyncio.StreamReader(",), {"StreamReader": Reader}),
}


def _role(method: Callable[..., None]) -> str | None:
    source = inspect.getsource(method)
    return next((role for role, (marks, _) in ROLES.items() if any(mark in source for mark in marks)), None)


def _case(role: str) -> type[unittest.TestCase]:
    class Case(test_streams.StreamTests):
        def setUp(self) -> None:
            super().setUp()
            test_streams.asyncio = Substitute(**ROLES[role][1])

        def tearDown(self) -> None:
            test_streams.asyncio = asyncio
            Resources.close()
            super().tearDown()

    return Case


def run() -> dict[str, dict[str, str]]:
    """Run each test in the role that is its own. Return by role what became of each test: "" is a success."""
    outcomes: dict[str, dict[str, str]] = {}
    for name in unittest.TestLoader().getTestCaseNames(test_streams.StreamTests):
        role = _role(getattr(test_streams.StreamTests, name))
        if role is None:
            continue
        result = unittest.TextTestRunner(stream=io.StringIO()).run(_case(role)(name))
        failures = [*result.errors, *result.failures, *result.skipped]
        outcomes.setdefault(role, {})[name] = failures[0][1] if failures else ""
    return outcomes


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=1)
