"""Deadlines of each phase of a connection: in total, apart from each other, and as a handler wants them for its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import streams
from helpers.streams import FLAVOURS, Serving, World, eventually, settled
from helpers.support import slow

from prefork import Limits, Stream
from prefork.errors import ConfigError, ConnectionTimeoutError
from prefork.events import ConnectionAborted
from prefork.implementation import native

SHORT = 0.3
#: What a busy machine may add.
LATE = 3.0

Handler = Callable[[Stream], Awaitable[None]]


#: The others have the timers and the poller of the first.
QUICK = ("asyncio", "uvloop") if native else ("asyncio", "uvloop", "no-epoll")


@pytest.fixture(params=[flavour if flavour in QUICK else slow(flavour) for flavour in FLAVOURS])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


async def echo(stream: Stream) -> None:
    async for line in stream:
        stream.write(line)


async def ends(reader: asyncio.StreamReader, began: float | None = None) -> float:
    """Seconds until the connection has ended, however: from now, or from when it `began`. A least time is counted from
    before the connection: this process may not run for a while behind it."""
    began = began or time.monotonic()
    with contextlib.suppress(ConnectionError):
        await reader.read()
    return time.monotonic() - began


async def test_a_peer_that_sends_nothing_is_aborted_after_the_first_byte_timeout(world: World) -> None:
    async with Serving(echo, Limits(first_byte_timeout=SHORT)) as serving:
        began = time.monotonic()
        reader, writer = await serving.connect()
        assert SHORT * 0.9 <= await ends(reader, began) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data within {SHORT:g} s (--first-byte-timeout)"]
        writer.close()
        # One that has said something may be silent as long as it likes.
        reader, writer = await serving.connect()
        writer.write(b"x")
        await asyncio.sleep(2 * SHORT)
        writer.write(b"y\n")
        assert await reader.readline() == b"xy\n"
        writer.close()


async def test_a_peer_that_stops_sending_is_aborted_after_the_idle_timeout(world: World) -> None:
    async with Serving(echo, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        for _ in range(8):
            began = time.monotonic()
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            await asyncio.sleep(SHORT / 3)
        assert SHORT * 0.9 <= await ends(reader, began) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data for {SHORT:g} s (--idle-timeout)"]
        writer.close()


@pytest.mark.slow
async def test_idle_time_counts_only_while_the_handler_waits_for_its_peer(world: World) -> None:
    async def slow(stream: Stream) -> None:
        async for line in stream:
            # Busy with something else for longer than the peer may be silent: it is not the peer's turn.
            await asyncio.sleep(3 * SHORT)
            stream.write(line)

    async with Serving(slow, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        for _ in range(2):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        assert serving.reasons(ConnectionAborted) == []
        assert await ends(reader) < SHORT + LATE
        writer.close()


async def test_sending_to_a_silent_peer_does_not_extend_its_idle_timeout(world: World) -> None:
    async def ping(stream: Stream) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                stream.write(b"ping\n")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SHORT / 4):
                        if not await stream.readline():
                            return

    async with Serving(ping, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data for {SHORT:g} s (--idle-timeout)"]
        writer.close()


async def test_a_trickle_of_bytes_does_not_extend_the_maximum_age(world: World) -> None:
    limits = Limits(max_age=2 * SHORT, idle_timeout=SHORT, first_byte_timeout=SHORT)
    async with Serving(echo, limits) as serving:
        began = time.monotonic()
        reader, writer = await serving.connect()
        ended = asyncio.ensure_future(ends(reader, began))
        while not ended.done():
            if not writer.transport.is_closing():
                # uvloop raises for a write to a closed transport, which the reader may hear of later.
                writer.write(b"x")
            await asyncio.sleep(SHORT / 10)
        assert 1.8 * SHORT <= await ended < 2 * SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"open for {2 * SHORT:g} s (--max-age)"]
        writer.close()


async def test_the_handler_receives_connection_timed_out_with_the_reason(world: World) -> None:
    seen: list[BaseException] = []

    async def curious(stream: Stream) -> None:
        try:
            await stream.read()
        except ConnectionTimeoutError as exc:
            seen.append(exc)
            with pytest.raises(ConnectionAbortedError) as again:
                await stream.read()
            seen.append(again.value)
            raise

    async with Serving(curious, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        await ends(reader)
        await eventually(lambda: len(seen) == 2)
        assert [str(exc) for exc in seen] == [f"no data for {SHORT:g} s (--idle-timeout)"] * 2
        assert [isinstance(exc, TimeoutError) for exc in seen] == [True, False], "a loop must not spin on it"
        writer.close()


async def test_a_handler_sets_deadlines_of_its_connection(world: World) -> None:
    async def chooses(stream: Stream) -> None:
        async for line in stream:
            name, _, value = line.decode().strip().partition(" ")
            setattr(stream.timeouts, name, None if value == "off" else float(value))
            stream.write(repr(stream.timeouts).encode() + b"\n")

    async with Serving(chooses, Limits(idle_timeout=SHORT)) as serving:
        patient, impatient, old = [await serving.connect() for _ in range(3)]
        for (_, writer), words in ((patient, b"idle off\n"), (impatient, b"idle 0.1\n"), (old, b"age 0.2\n")):
            writer.write(words)
        assert await patient[0].readline() == b"<Timeouts idle=None write=60.0 age=None>\n"
        assert await impatient[0].readline() == b"<Timeouts idle=0.1 write=60.0 age=None>\n"
        assert await old[0].readline() == b"<Timeouts idle=0.3 write=60.0 age=0.2>\n"
        assert await ends(impatient[0]) < SHORT + LATE
        assert await ends(old[0]) < SHORT + LATE
        await asyncio.sleep(2 * SHORT)
        patient[1].write(b"idle 5\n")
        assert (await patient[0].readline()).startswith(b"<Timeouts idle=5")
        assert sorted(serving.reasons(ConnectionAborted)) == [
            "no data for 0.1 s (stream.timeouts.idle)",
            "open for 0.2 s (stream.timeouts.age)",
        ]
        for _, writer in (patient, impatient, old):
            writer.close()


async def test_an_idle_timeout_counts_for_a_read_that_waits_already(world: World) -> None:
    async with world.raw() as (stream, _):
        reading = asyncio.ensure_future(stream.read(1))
        await asyncio.sleep(0)
        stream.timeouts.idle = SHORT
        with pytest.raises(ConnectionTimeoutError, match=r"no data for .* \(stream\.timeouts\.idle\)"):
            await settled(reading)
        stream.timeouts.idle = SHORT
        assert world.server_state is not None
        assert len(world.server_state.deadlines) == 0


async def test_a_write_timeout_can_be_set_while_bytes_are_unsent(world: World) -> None:
    async with world.raw() as (stream, _):
        sending = asyncio.ensure_future(stream.send(bytes(12 << 20)))
        await asyncio.sleep(0.01)
        stream.timeouts.write = SHORT
        with pytest.raises(ConnectionTimeoutError, match=r"peer read nothing for .* \(stream\.timeouts\.write\)"):
            await settled(sending)


@pytest.mark.parametrize("value", [0, -1, "x", float("nan"), float("inf"), True])
async def test_a_timeout_that_is_no_positive_number_is_rejected(world: World, value: Any) -> None:
    async with world.raw() as (stream, _):
        for name in ("idle", "write", "age"):
            with pytest.raises(ConfigError, match=rf"^timeouts\.{name} "):
                setattr(stream.timeouts, name, value)


class Quiet(asyncio.Protocol):
    """Says nothing, and reads until it is told to stop."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport


class Echoes(Quiet):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Pings(Quiet):
    """Sends four lines in each timeout, without being asked."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._ping()

    def _ping(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"ping\n")
            asyncio.get_running_loop().call_later(SHORT / 4, self._ping)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_age": SHORT}, f"open for {SHORT:g} s (--max-age)"),
        ({"first_byte_timeout": SHORT}, f"no data within {SHORT:g} s (--first-byte-timeout)"),
        ({"idle_timeout": SHORT}, f"no data for {SHORT:g} s (--idle-timeout)"),
    ],
    ids=["age", "first byte", "idle"],
)
@pytest.mark.parametrize("protocol", [Quiet, Pings])
async def test_a_silent_peer_of_a_protocol_is_aborted(
    world: World, protocol: Any, limits: dict[str, float], reason: str
) -> None:
    async with Serving(protocol, Limits(**limits)) as serving:
        began = time.monotonic()
        reader, writer = await serving.connect()
        assert SHORT * 0.9 <= await ends(reader, began) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [reason]
        await eventually(lambda: serving.server.connections == 0)
        writer.close()


async def test_a_peer_of_a_protocol_that_has_said_something_passes_the_first_byte_timeout(world: World) -> None:
    async with Serving(Echoes, Limits(first_byte_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        writer.write(b"x")
        await asyncio.sleep(2 * SHORT)
        writer.write(b"y\n")
        assert await reader.readline() == b"xy\n"
        writer.close()


async def test_a_peer_of_a_protocol_that_stops_sending_is_aborted_after_the_idle_timeout(world: World) -> None:
    async with Serving(Echoes, Limits(idle_timeout=SHORT, first_byte_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        for _ in range(8):
            began = time.monotonic()
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            await asyncio.sleep(SHORT / 3)
        assert SHORT * 0.9 <= await ends(reader, began) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data for {SHORT:g} s (--idle-timeout)"]
        writer.close()


class Busy(Quiet):
    """Takes three times the idle timeout for an answer, and reads nothing meanwhile."""

    def data_received(self, data: bytes) -> None:
        self.transport.pause_reading()
        asyncio.get_running_loop().call_later(3 * SHORT, self._answer, data)

    def _answer(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.resume_reading()


class Floods(Quiet):
    """Answers with more than the kernel's buffers hold."""

    def data_received(self, data: bytes) -> None:
        self.transport.write(bytes(32 << 20) + data)


@pytest.mark.slow
async def test_a_peer_is_not_idle_while_its_protocol_has_paused_reading(world: World) -> None:
    async with Serving(Busy, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        for _ in range(2):
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
        assert serving.reasons(ConnectionAborted) == []
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data for {SHORT:g} s (--idle-timeout)"]
        writer.close()


async def test_a_peer_is_not_idle_while_its_protocol_has_unsent_bytes(world: World) -> None:
    async with Serving(Floods, Limits(idle_timeout=SHORT)) as serving:
        reader, writer = await serving.connect()
        writer.write(b"end\n")
        await asyncio.sleep(3 * SHORT)
        assert serving.reasons(ConnectionAborted) == []
        assert await reader.readexactly((32 << 20) + 4) == bytes(32 << 20) + b"end\n"
        writer.close()


async def test_a_silent_peer_of_a_protocol_with_tls_is_aborted_after_the_idle_timeout(world: World) -> None:
    async with Serving(Echoes, Limits(idle_timeout=SHORT), tls=True) as serving:
        reader, writer = await serving.connect(ssl=streams.client_context(), server_hostname="localhost")
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data for {SHORT:g} s (--idle-timeout)"]
        writer.close()


@contextlib.asynccontextmanager
async def unix_listener(serving: Serving, folder: Path) -> AsyncIterator[str]:
    """Have the server accept from a unix socket too, and yield its path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        serving.server.add_socket(listener)
        yield listener.getsockname()


async def test_a_protocol_on_a_unix_socket_has_no_idle_timeout(world: World, tmp_path: Path) -> None:
    limits = Limits(idle_timeout=SHORT / 3, max_age=SHORT)
    async with Serving(Quiet, limits) as serving, unix_listener(serving, tmp_path) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"open for {SHORT:g} s (--max-age)"]
        writer.close()


class BufferedEchoes(asyncio.BufferedProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = bytearray(100)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self.transport.get_protocol() is self
        self.transport.write(bytes(self.buffer[:nbytes]))

    def eof_received(self) -> bool:
        self.transport.write(b"end\n")
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        lost.append(exc)


lost: list[BaseException | None] = []


class PlainEchoes(Echoes):
    def data_received(self, data: bytes) -> None:
        assert self.transport.get_protocol() is self
        super().data_received(data)

    def eof_received(self) -> bool:
        self.transport.write(b"end\n")
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        lost.append(exc)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [PlainEchoes, BufferedEchoes])
@pytest.mark.parametrize("transport", ["tls", "unix"])
async def test_the_first_byte_of_a_protocol_is_the_first_that_it_receives(
    world: World, tmp_path: Path, transport: str, protocol: Any
) -> None:
    lost.clear()
    tls: dict[str, Any] = {"ssl": streams.client_context(), "server_hostname": "localhost"}
    async with (
        Serving(protocol, Limits(first_byte_timeout=SHORT), tls=transport == "tls") as serving,
        unix_listener(serving, tmp_path) as path,
    ):

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await (serving.connect(**tls) if transport == "tls" else asyncio.open_unix_connection(path))

        reader, writer = await connect()
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data within {SHORT:g} s (--first-byte-timeout)"]
        await eventually(lambda: len(lost) == 1)
        writer.close()
        # With TLS 1.3 these bytes may arrive together with the end of the handshake.
        reader, writer = await connect()
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        await asyncio.sleep(2 * SHORT)
        writer.write(b"still\n")
        assert await reader.readline() == b"still\n"
        if transport == "unix":
            writer.write_eof()
            assert await reader.readline() == b"end\n"
        writer.close()
        assert len(serving.reasons(ConnectionAborted)) == 1


async def test_a_protocol_that_took_over_before_the_first_byte_is_left_alone(world: World, tmp_path: Path) -> None:
    class TakesOver(Quiet):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            asyncio.get_running_loop().call_later(SHORT / 4, self._leave)

        def _leave(self) -> None:
            # The watch stands in for this protocol, and has what it has.
            assert self.transport.get_protocol().transport is self.transport
            other = Echoes()
            other.transport = self.transport
            self.transport.set_protocol(other)

    limits = Limits(first_byte_timeout=SHORT)
    async with Serving(TakesOver, limits) as serving, unix_listener(serving, tmp_path) as path:
        reader, writer = await asyncio.open_unix_connection(path)
        await asyncio.sleep(2 * SHORT)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        assert serving.reasons(ConnectionAborted) == []
        writer.close()


async def test_with_tls_the_first_byte_is_the_first_after_the_handshake(world: World) -> None:
    async with Serving(echo, Limits(first_byte_timeout=SHORT), tls=True) as serving:
        options = {"ssl": streams.client_context(), "server_hostname": "localhost"}
        reader, writer = await serving.connect(**options)
        assert await ends(reader) < SHORT + LATE
        assert serving.reasons(ConnectionAborted) == [f"no data within {SHORT:g} s (--first-byte-timeout)"]
        writer.close()
        reader, writer = await serving.connect(**options)
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        await asyncio.sleep(2 * SHORT)
        writer.write(b"still\n")
        assert await reader.readline() == b"still\n"
        writer.close()


@pytest.mark.parametrize("handler", [echo, Echoes])
async def test_deadlines_of_closed_connections_are_forgotten(world: World, handler: object) -> None:
    """200 connections that set three deadlines each, and end before any has passed: nothing of them is kept."""
    limits = Limits(first_byte_timeout=60, idle_timeout=60, max_age=600)
    async with Serving(handler, limits) as serving:
        for _ in range(4):
            pairs = [await serving.connect() for _ in range(50)]
            for _, writer in pairs:
                writer.write(b"x\n")
            for reader, writer in pairs:
                assert await reader.readline() == b"x\n"
                writer.close()
        await eventually(lambda: serving.server.connections == 0)
        state = serving.server._shared
        assert state is not None
        assert len(state.deadlines) == 0
        assert state.deadlines._wheel.buckets < 50, "buckets, and none for each connection"


@pytest.mark.parametrize("handler", [echo, Echoes])
async def test_two_deadlines_of_one_connection_that_pass_together_are_one_event(world: World, handler: object) -> None:
    async with Serving(handler, Limits(first_byte_timeout=SHORT, idle_timeout=SHORT, max_age=SHORT)) as serving:
        reader, writer = await serving.connect()
        await ends(reader)
        await asyncio.sleep(0.05)
        assert len(serving.reasons(ConnectionAborted)) == 1
        writer.close()


async def test_many_deadlines_that_pass_together_all_expire(world: World) -> None:
    async with Serving(echo, Limits(first_byte_timeout=SHORT)) as serving:
        pairs = [await serving.connect() for _ in range(150)]
        seconds = await asyncio.gather(*(ends(reader) for reader, _ in pairs))
        assert max(seconds) < SHORT + LATE
        assert len(serving.reasons(ConnectionAborted)) == 150
        for _, writer in pairs:
            writer.close()
