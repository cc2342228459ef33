"""A Python without the private names that prefork uses is served with public ones, on every loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World, settled

from prefork.errors import StreamBusyError
from prefork.net import cpython, handshake_throttle, receiving, sending, tls, waiter


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


@pytest.fixture
def future_waiters(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handshake_throttle, receiving, sending):
        monkeypatch.setattr(module, "Waiter", waiter.FutureWaiter)


@pytest.fixture
def no_private_names(monkeypatch: pytest.MonkeyPatch, future_waiters: None) -> None:
    monkeypatch.setattr(cpython, "_HAS_ACCEPT", False)
    monkeypatch.setattr(tls, "raw_ssl_object", lambda connection: connection)


def test_this_python_has_the_private_names_so_nothing_is_slow() -> None:
    assert cpython._HAS_ACCEPT
    assert cpython.HAS_FUTURE_PROTOCOL
    assert waiter.Waiter is not waiter.FutureWaiter


def test_an_object_of_other_methods_is_not_taken_for_an_ssl_object() -> None:
    class Changed:
        _sslobj = object()

    changed: Any = Changed()
    assert cpython.raw_ssl_object(changed) is changed
    del Changed._sslobj
    assert cpython.raw_ssl_object(changed) is changed


@pytest.mark.parametrize("private", [True, False])
def test_a_descriptor_is_accepted_either_way(monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    monkeypatch.setattr(cpython, "_HAS_ACCEPT", private)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        fd, address = cpython.accept_descriptor(listener)
        with socket.socket(fileno=fd) as accepted:
            assert address == peer.getsockname() == accepted.getpeername()


@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_a_stream_echoes_waits_and_drains(world: World, no_private_names: None, transport: str) -> None:
    world.transport = transport
    async with world.connected() as (stream, reader, writer):

        async def echo() -> None:
            async for line in stream:
                await stream.send(line * 100_000)

        serving = asyncio.ensure_future(echo())
        for _ in range(3):
            writer.write(b"0123456789abcdef\n")
            answer = b"0123456789abcdef\n" * 100_000
            assert await settled(reader.readexactly(len(answer))) == answer
        stream.close()
        await settled(serving)


async def test_a_cancelled_wait_leaves_the_stream_to_the_next_task(world: World, future_waiters: None) -> None:
    async with world.connected() as (stream, _, writer):
        cancelled = asyncio.ensure_future(stream.read(100))
        await asyncio.sleep(0.01)
        with pytest.raises(StreamBusyError):
            await stream.read(1)

        async def other() -> bytes:
            cancelled.cancel("enough")
            writer.write(b"for the other task")
            return await stream.read(100)

        assert await settled(asyncio.ensure_future(other())) == b"for the other task"
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await settled(cancelled)
