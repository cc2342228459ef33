"""`prefork.subscribe`: a service is told of its connections, and what its callback does harms no server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import Serving, World, eventually

import prefork
from prefork.config import Limits
from prefork.events import SubscriberFailed
from prefork.net import subscribers
from prefork.testing import run_server


@pytest.fixture
def world() -> World:
    return World("asyncio", "tcp")


@pytest.fixture(autouse=True)
def _no_subscribers_left() -> Iterator[None]:
    yield
    subscribers.callbacks = ()


async def serve(stream: prefork.Stream) -> None:
    if await stream.readline() == b"fail\n":
        raise ZeroDivisionError("as asked")
    await stream.send(b"hello\n")


class Fails(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        raise ZeroDivisionError("as asked")


class FailsLater(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        raise ZeroDivisionError("as asked")


async def visit(served: Serving, line: bytes = b"\n") -> str:
    """Open a connection, send a line, wait for the end of both sides, and return the address of this one."""
    reader, writer = await served.connect()
    writer.write(line)
    await reader.read()
    address = writer.get_extra_info("sockname")
    writer.close()
    await eventually(lambda: served.server.connections == 0, "the connection ended")
    return "{}:{}".format(*address)


async def test_the_events_of_a_connection_come_in_order(world: World) -> None:
    seen: list[prefork.ServiceEvent] = []
    unsubscribe = prefork.subscribe(seen.append)
    async with Serving(serve, Limits()) as served:
        local = "{}:{}".format(*served.where)
        first = await visit(served)
        second = await visit(served, b"fail\n")
    opened, closed, _, failed, ended, draining = seen
    assert opened == prefork.ConnectionOpened(1, first, local)
    assert isinstance(closed, prefork.ConnectionClosed)
    assert dataclasses.replace(closed, seconds=0.0) == prefork.ConnectionClosed(
        1, first, local, 0.0, received=1, sent=6, tls="", reason="done"
    )
    assert 0 < closed.seconds < 60
    assert isinstance(failed, prefork.HandlerFailed)
    assert (failed.id, failed.peer, type(failed.exception)) == (2, second, ZeroDivisionError)
    assert isinstance(ended, prefork.ConnectionClosed)
    assert ended.reason == "handler_failed"
    assert draining == prefork.Draining()
    with pytest.raises(dataclasses.FrozenInstanceError):
        closed.reason = "other"  # type: ignore[misc]  # it is frozen
    unsubscribe()
    unsubscribe()
    async with Serving(serve, Limits()) as served:
        await visit(served)
    assert len(seen) == 6


async def test_protocols_and_refusals_are_told_too(world: World) -> None:
    seen: list[prefork.ServiceEvent] = []
    prefork.subscribe(seen.append)
    # The loop tells it of a callback that fails.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for protocol in (Fails, FailsLater):
        async with Serving(protocol, Limits()) as served:
            await visit(served)
        assert [type(event).__name__ for event in seen] == [
            "ConnectionOpened",
            "HandlerFailed",
            "ConnectionClosed",
            "Draining",
        ]
        seen.clear()
    async with Serving(serve, Limits(max_connections=1, at_limit="refuse")) as served:
        _, waiting = await served.connect()
        await eventually(lambda: len(seen) == 1, "it was accepted")
        reader, other = await served.connect()
        assert await reader.read() == b""
        assert isinstance(seen[-1], prefork.ConnectionClosed)
        assert (seen[-1].id, seen[-1].reason, seen[-1].seconds) == (0, "max_connections", 0.0)
        for writer in (waiting, other):
            writer.close()


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
async def test_a_callback_that_raises_is_logged_once_and_harms_nothing(world: World, error: BaseException) -> None:
    seen: list[prefork.ServiceEvent] = []

    def bad(event: prefork.ServiceEvent) -> None:
        raise error

    prefork.subscribe(bad)
    prefork.subscribe(seen.append)
    async with Serving(serve, Limits()) as served:
        await visit(served)
        await visit(served)
        failures = [event for event in served.events if isinstance(event, SubscriberFailed)]
    assert len(failures) == 1
    assert "bad failed: " in str(failures[0])
    assert "raise error" in failures[0].traceback
    assert len(seen) == 5


async def test_a_callback_may_unsubscribe_and_may_end_other_connections(world: World) -> None:
    seen: list[str] = []

    def once(event: prefork.ServiceEvent) -> None:
        seen.append(type(event).__name__)
        unsubscribe()
        served.server.abort_clients()

    unsubscribe = prefork.subscribe(once)
    async with Serving(serve, Limits()) as served:
        with contextlib.suppress(ConnectionError):
            await visit(served)
        await eventually(lambda: served.server.connections == 0, "the connection ended")
        await visit(served)
    assert seen == ["ConnectionOpened"]


async def test_a_late_subscriber_gets_no_local_address(world: World) -> None:
    seen: list[prefork.ServiceEvent] = []
    async with Serving(serve, Limits()) as served:
        _, writer = await served.connect()
        await eventually(lambda: served.server.connections == 1, "it was accepted")
        prefork.subscribe(seen.append)
        writer.close()
        await eventually(lambda: seen, "the end")
    assert isinstance(seen[0], prefork.ConnectionClosed)
    assert seen[0].local == ""


def test_only_a_plain_function_can_subscribe() -> None:
    async def coroutine(event: object) -> None: ...

    for wrong in (coroutine, None, "text"):
        with pytest.raises(TypeError, match="a plain function"):
            prefork.subscribe(wrong)  # type: ignore[arg-type]  # the point


def test_a_worker_tells_its_service(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "import prefork\n"
        "def told(event):\n"
        "    with open('events', 'a') as file:\n"
        "        print(type(event).__name__, file=file)\n"
        "prefork.subscribe(told)\n"
        "async def handle(stream):\n"
        "    await stream.send(await stream.readline())\n"
    )
    with run_server("service:handle", "-w", "1", cwd=tmp_path) as server:
        done = subprocess.run(
            ["timeout", "10", "nc", "-N", "127.0.0.1", str(server.port)], input=b"hello\n", capture_output=True
        )
        assert done.stdout == b"hello\n"
        assert server.stop() == 0
    assert (tmp_path / "events").read_text().split() == ["ConnectionOpened", "ConnectionClosed", "Draining"]
