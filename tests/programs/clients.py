"""A client for each protocol of the servers here: the library's own one, or the standard library's.

Each has `request(port)`: one transaction on a connection of its own, whose answer is checked. It returns the pid that
the server answers with. `hold(port)` opens a connection, uses it once, and keeps it open and idle. Nothing here starts
a server. Every wait has a deadline. Modules that may not be installed are imported where they are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import smtplib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
#: Seconds for one transaction, many times what it takes.
DEADLINE = 30.0


class WrongAnswer(Exception):
    """The server answered, but not what it was asked for."""


@dataclass(frozen=True, slots=True)
class Client:
    """How one protocol is spoken."""

    connected: Callable[[int], AbstractContextManager[int]]
    """Connect to a port, do one transaction, and stay connected within the block; the pid of the worker."""

    def request(self, port: int) -> int:
        """Do one transaction on a connection of its own; return the pid of the worker. Raises what the client does."""
        with self.connected(port) as pid:
            return pid

    def hold(self, port: int) -> AbstractContextManager[int]:
        """Keep a connection open and idle within the block, after one transaction on it."""
        return self.connected(port)


def _pid_of(answer: str, expected: str) -> int:
    words = answer.split()
    if words[:-1] != expected.split() or not words[-1].isdigit():
        raise WrongAnswer(f"{answer!r}, not {expected!r} and a pid")
    return int(words[-1])


@contextlib.contextmanager
def _http(port: int) -> Iterator[int]:
    connection = http.client.HTTPConnection(HOST, port, timeout=DEADLINE)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            raise WrongAnswer(f"{response.status} {response.reason}: {body}")
        yield _pid_of(body, "")
    finally:
        connection.close()


@contextlib.contextmanager
def _lines(port: int) -> Iterator[int]:
    with socket.create_connection((HOST, port), timeout=DEADLINE) as sock, sock.makefile("rb") as file:
        sock.sendall(b"hello\n")
        line = file.readline()
        if not line:
            raise ConnectionError("closed without an answer")
        yield _pid_of(line.decode(), "hello")


@contextlib.contextmanager
def _smtp(port: int) -> Iterator[int]:
    with smtplib.SMTP(HOST, port, local_hostname="client.invalid", timeout=DEADLINE) as session:
        session.ehlo()
        session.mail("from@client.invalid")
        session.rcpt("to@server.invalid")
        code, answer = session.data(b"Subject: test\r\n\r\nOne line of text.\r\n")
        if code != 250:
            raise WrongAnswer(f"{code} {answer.decode()}")
        yield _pid_of(answer.decode(), "accepted by")


@contextlib.contextmanager
def _websocket(port: int) -> Iterator[int]:
    from websockets.sync.client import connect

    with connect(f"ws://{HOST}:{port}", open_timeout=DEADLINE, close_timeout=DEADLINE, proxy=None) as websocket:
        websocket.send("hello")
        answer = websocket.recv(timeout=DEADLINE)
        yield _pid_of(str(answer), "hello")


@contextlib.asynccontextmanager
async def _ftp(port: int) -> AsyncIterator[int]:
    import aioftp

    async with aioftp.Client.context(HOST, port) as client:
        async with client.download_stream("pid") as stream:
            pid = (await stream.read()).decode()
        yield _pid_of(pid, "")


@contextlib.asynccontextmanager
async def _ssh(port: int) -> AsyncIterator[int]:
    import asyncssh

    async with asyncssh.connect(
        HOST, port, known_hosts=None, config=None, username="guest", agent_path=None, client_keys=None
    ) as connection:
        done = await connection.run("hello", check=True)
        yield _pid_of(str(done.stdout), "hello")


@contextlib.asynccontextmanager
async def _grpc(port: int) -> AsyncIterator[int]:
    from google.protobuf.wrappers_pb2 import StringValue
    from grpclib.client import Channel, UnaryUnaryMethod

    async with Channel(HOST, port) as channel:
        method: Any = UnaryUnaryMethod(channel, "/tests.Echo/Answer", StringValue, StringValue)
        answer = await method(StringValue(value="hello"))
        yield _pid_of(answer.value, "hello")


def _on_a_loop(
    connected: Callable[[int], AbstractAsyncContextManager[int]],
) -> Callable[[int], AbstractContextManager[int]]:
    """Return the same for a caller without a loop; the loop runs only while it enters and leaves the block."""

    @contextlib.contextmanager
    def enter(port: int) -> Iterator[int]:
        with asyncio.Runner() as runner:
            manager = connected(port)
            pid = runner.run(asyncio.wait_for(manager.__aenter__(), DEADLINE))
            try:
                yield pid
            finally:
                runner.run(asyncio.wait_for(manager.__aexit__(None, None, None), DEADLINE))

    return enter


FTP = Client(_on_a_loop(_ftp))
GRPC = Client(_on_a_loop(_grpc))
HTTP = Client(_http)
LINES = Client(_lines)
SMTP = Client(_smtp)
SSH = Client(_on_a_loop(_ssh))
WEBSOCKET = Client(_websocket)
