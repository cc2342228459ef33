"""An exception that a handler lets pass is a failure of the handler, or one of its connection."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from helpers.streams import Serving, World, eventually, server_context

import prefork
from prefork.config import Limits
from prefork.events import ConnectionLost, Event, HandlerFailed, ReadLimitExceeded

Handle = Callable[[prefork.Stream], Awaitable[object]]


@pytest.fixture
def world() -> World:
    return World("asyncio", "tcp")


@contextlib.asynccontextmanager
async def dead_upstream() -> AsyncIterator[tuple[str, int]]:
    """A server that resets each of its connections after the first byte of it."""

    def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(b"x")
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def events_of(
    handle: Handle, *sent: bytes, limits: Limits | None = None, count: int = 1, reset: bool = False
) -> list[Event]:
    """Serve with `handle`, send `sent` on a connection each, and return what was said."""
    async with Serving(handle, limits or Limits()) as served:
        for data in sent:
            reader, writer = await served.connect()
            writer.write(data)
            if reset:
                await reader.readexactly(1)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.write_eof()
            await eventually(lambda: served.server.connections == 0, "the connection ended")
            writer.close()
        await eventually(lambda: len(served.events) >= count, "it was said")
        return served.events


# --- the handler's own ------------------------------------------------------------------------------------------------


async def test_a_dead_upstream_is_the_failure_of_the_handler(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        nowhere = unused.getsockname()

    async with dead_upstream() as upstream, Serving(incomplete_read, Limits()) as other:

        async def refused(stream: prefork.Stream) -> None:
            await asyncio.open_connection(*nowhere)

        async def ended(stream: prefork.Stream) -> None:
            reader, writer = await asyncio.open_connection(*other.where)
            writer.close()
            await reader.readexactly(10)

        async def broken(stream: prefork.Stream) -> None:
            reader, _ = await asyncio.open_connection(*upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(reader.readexactly(10))

        async def long_line(stream: prefork.Stream) -> None:
            reader = asyncio.StreamReader(limit=4)
            reader.feed_data(b"too long\n")
            await reader.readuntil()

        for handle, error in (
            (refused, "ConnectionRefusedError"),
            (ended, "IncompleteReadError"),
            (broken, "ExceptionGroup"),
            (long_line, "LimitOverrunError"),
        ):
            (event,) = await events_of(handle, b"hello\n")
            assert isinstance(event, HandlerFailed)
            assert error in event.error
            assert handle.__name__ in event.traceback


async def test_the_peer_of_another_connection_is_an_upstream_too(world: World) -> None:
    """As in a chat, whose handlers write to the connections of others."""
    streams: list[prefork.Stream] = []

    async def handle(stream: prefork.Stream) -> None:
        streams.append(stream)
        await stream.readline()
        if len(streams) == 2:
            await streams[0].drain()

    events = await events_of(handle, b"1\n", b"2\n")
    assert [type(event) for event in events] == [HandlerFailed]


@pytest.mark.parametrize("error", [ConnectionResetError("mine"), asyncio.IncompleteReadError(b"", 1)])
async def test_what_a_handler_raises_itself_is_its_own(world: World, error: Exception) -> None:
    async def handle(stream: prefork.Stream) -> None:
        raise error

    assert [type(event) for event in await events_of(handle, b"hello\n")] == [HandlerFailed]


async def test_a_mistake_in_the_care_for_a_lost_peer_is_the_failure_of_the_handler(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        try:
            await stream.readexactly(100)
        except asyncio.IncompleteReadError:
            {}["who"]  # type: ignore[index]  # the mistake

    (event,) = await events_of(handle, b"short")
    assert isinstance(event, HandlerFailed)
    assert "KeyError" in event.error


async def test_a_group_with_one_failure_of_the_handler_is_its_failure(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        lost = await asyncio.gather(stream.readexactly(100), return_exceptions=True)
        raise ExceptionGroup("both", [*lost, ValueError("mine")])  # type: ignore[list-item]  # it is an exception

    assert [type(event) for event in await events_of(handle, b"short")] == [HandlerFailed]


# --- the peer's -------------------------------------------------------------------------------------------------------


async def incomplete_read(stream: prefork.Stream) -> None:
    await stream.readexactly(100)


async def incomplete_until(stream: prefork.Stream) -> None:
    await stream.readuntil(b"end")


async def in_a_group(stream: prefork.Stream) -> None:
    async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as group:
        outer.create_task(asyncio.sleep(0))
        group.create_task(stream.readexactly(100))


async def chained(stream: prefork.Stream) -> None:
    try:
        await stream.readexactly(100)
    except asyncio.IncompleteReadError as exc:
        raise ValueError("bad frame") from exc


async def raised_again(stream: prefork.Stream) -> None:
    try:
        await stream.readexactly(100)
    except asyncio.IncompleteReadError as exc:
        assert pickle.dumps(exc)
        raise


@pytest.mark.parametrize("handle", [incomplete_read, incomplete_until, in_a_group, chained, raised_again])
async def test_an_end_too_early_is_the_peers(world: World, handle: Handle) -> None:
    assert [type(event) for event in await events_of(handle, b"short")] == [ConnectionLost]


async def read_on(stream: prefork.Stream) -> None:
    await stream.send(b"x")
    await stream.read(100)
    await stream.read(100)


async def write_on(stream: prefork.Stream) -> None:
    await stream.send(b"x")
    while True:
        await stream.send(b"x" * 10_000)
        await asyncio.sleep(0)


async def raise_what_broke_it(stream: prefork.Stream) -> None:
    await stream.send(b"x")
    while not stream.exception():
        with contextlib.suppress(OSError):
            await stream.read(100)
    raise stream.exception() or AssertionError


@pytest.mark.parametrize("handle", [read_on, write_on, raise_what_broke_it])
async def test_a_reset_is_the_peers(world: World, handle: Handle) -> None:
    assert [type(event) for event in await events_of(handle, b"hello", reset=True)] == [ConnectionLost]


async def test_a_handshake_inside_a_handler_is_the_peers(world: World) -> None:
    async def handle(stream: prefork.Stream) -> None:
        await stream.start_tls(server_context())

    events = await events_of(handle, b"", b"no client hello", count=2)
    assert [type(event) for event in events] == [ConnectionLost] * 2


@pytest.mark.parametrize("read", ["readline", "readuntil"])
@pytest.mark.parametrize("line", [b"x" * 100, b"x" * 100 + b"\n"])
async def test_a_line_beyond_the_limit_is_said_with_the_option(world: World, read: str, line: bytes) -> None:
    async def handle(stream: prefork.Stream) -> None:
        await getattr(stream, read)()

    (event,) = await events_of(handle, line, limits=Limits(read_limit=64))
    assert isinstance(event, ReadLimitExceeded)
    assert str(event).endswith("it sent a line of more than 64 bytes (--read-limit)")


async def test_causes_in_a_circle_end(world: World) -> None:
    async def handle(stream: prefork.Stream) -> Any:
        one, other = ValueError("one"), ValueError("other")
        one.__cause__, other.__cause__ = other, one
        raise one

    assert [type(event) for event in await events_of(handle, b"")] == [HandlerFailed]
