"""A client for each protocol of the servers here: the library's own one, or the standard library's.

Each has `request(port)`: one transaction on a connection of its own, whose answer is checked. It returns the pid that
the server answers with. `hold(port)` keeps a connection open and idle, and can use it again. Nothing here starts a
server. Every wait has a deadline. Modules that may not be installed are imported where they are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import smtplib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

HOST = "127.0.0.1"
#: Seconds for one transaction, many times what it takes.
DEADLINE = 30.0
T = TypeVar("T")


class WrongAnswer(Exception):
    """The server answered, but not what it was asked for."""


@dataclass(frozen=True, slots=True)
class Client:
    """How one protocol is spoken."""

    hold: Callable[[int], AbstractContextManager[Callable[[], int]]]
    """Connect to a port and stay connected within the block. What it yields does one transaction, and returns the pid
    of the process that answered. It raises what the client raises."""

    def request(self, port: int) -> int:
        """Do one transaction on a connection of its own; return the pid of the process that answered."""
        with self.hold(port) as transact:
            return transact()


def _pid_of(answer: str, expected: str) -> int:
    words = answer.split()
    if words[:-1] != expected.split() or not words[-1:] or not words[-1].isdigit():
        raise WrongAnswer(f"{answer!r}, not {expected!r} and a pid")
    return int(words[-1])


@contextlib.contextmanager
def _http(port: int) -> Iterator[Callable[[], int]]:
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE)

    def get() -> int:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            raise WrongAnswer(f"{response.status} {response.reason}: {body}")
        return _pid_of(body, "")

    try:
        connection.connect()
        # Otherwise http.client connects again where the server has closed the connection.
        connection.auto_open = 0
        yield get
    finally:
        connection.close()


@contextlib.contextmanager
def _lines(port: int) -> Iterator[Callable[[], int]]:
    with socket.create_connection((HOST, port), timeout=DEADLINE) as sock, sock.makefile("rb") as file:

        def ask() -> int:
            sock.sendall(b"hello\n")
            line = file.readline()
            if not line:
                raise ConnectionError("closed without an answer")
            return _pid_of(line.decode(), "hello")

        yield ask


@contextlib.contextmanager
def _smtp(port: int) -> Iterator[Callable[[], int]]:
    with smtplib.SMTP(HOST, port, local_hostname="client.invalid", timeout=DEADLINE) as session:

        def send() -> int:
            session.ehlo_or_helo_if_needed()
            session.mail("from@client.invalid")
            session.rcpt("to@server.invalid")
            code, answer = session.data(b"Subject: test\r\n\r\nOne line of text.\r\n")
            if code != 250:
                raise WrongAnswer(f"{code} {answer.decode()}")
            return _pid_of(answer.decode(), "accepted by")

        yield send


@contextlib.contextmanager
def _websocket(port: int) -> Iterator[Callable[[], int]]:
    from websockets.sync.client import connect

    with connect(f"ws://{HOST}:{port}", open_timeout=DEADLINE, close_timeout=DEADLINE, proxy=None) as websocket:

        def ask() -> int:
            websocket.send("hello")
            return _pid_of(str(websocket.recv(timeout=DEADLINE)), "hello")

        yield ask


@contextlib.asynccontextmanager
async def _ftp(port: int) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    import aioftp

    client = aioftp.Client()

    async def download() -> int:
        async with client.download_stream("pid") as stream:
            return _pid_of((await stream.read()).decode(), "")

    try:
        await client.connect(HOST, port)
        await client.login()
        yield download
        await client.quit()
    finally:
        # Otherwise a transaction that failed leaves its socket open.
        client.close()


@contextlib.asynccontextmanager
async def _ssh(port: int) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    import asyncssh

    async with asyncssh.connect(
        HOST, port, known_hosts=None, config=None, username="guest", agent_path=None, client_keys=None
    ) as connection:

        async def run() -> int:
            done = await connection.run("hello", check=True)
            return _pid_of(str(done.stdout), "hello")

        yield run


@contextlib.asynccontextmanager
async def _grpc(port: int) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    from google.protobuf.wrappers_pb2 import StringValue
    from grpclib.client import Channel, UnaryUnaryMethod

    async with Channel(HOST, port) as channel:
        method: Any = UnaryUnaryMethod(channel, "/tests.Echo/Answer", StringValue, StringValue)

        async def call() -> int:
            return _pid_of((await method(StringValue(value="hello"))).value, "hello")

        yield call


def _on_a_loop(
    hold: Callable[[int], AbstractAsyncContextManager[Callable[[], Awaitable[int]]]],
) -> Callable[[int], AbstractContextManager[Callable[[], int]]]:
    """Return the same for a caller without a loop. The loop turns only during connecting, a transaction and closing."""

    @contextlib.contextmanager
    def hold_without_loop(port: int) -> Iterator[Callable[[], int]]:
        with asyncio.Runner() as runner:

            def wait(awaitable: Awaitable[T]) -> T:
                return runner.run(_within_deadline(awaitable))

            manager = hold(port)
            transact = wait(manager.__aenter__())
            try:
                yield lambda: wait(transact())
            finally:
                wait(manager.__aexit__(None, None, None))

    return hold_without_loop


async def _within_deadline(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, DEADLINE)


FTP = Client(_on_a_loop(_ftp))
GRPC = Client(_on_a_loop(_grpc))
HTTP = Client(_http)
LINES = Client(_lines)
SMTP = Client(_smtp)
SSH = Client(_on_a_loop(_ssh))
WEBSOCKET = Client(_websocket)
