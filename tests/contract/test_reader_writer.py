"""What handlers that were written for asyncio's `(reader, writer)` find, beyond what every stream does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import FLAVOURS, Serving, World, client_context, eventually, server_context, settled

import prefork
from prefork.events import ConnectionLost, Event, HandlerFailed


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


def serving(handler: object, tls: bool = False, **limits: Any) -> Serving:
    return Serving(handler, prefork.Limits(**limits), tls)


async def received(reader: asyncio.StreamReader, size: int = -1) -> bytes:
    return await settled(asyncio.ensure_future(reader.read(size) if size < 0 else reader.readexactly(size)))


def of_kind(events: list[Event], kind: type[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


# --- a plain function -------------------------------------------------------------------------------------------------


async def test_the_connection_of_a_callback_is_open_until_its_writer_is_closed(world: World) -> None:
    tasks, returned = set(), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            writer.write(line.upper())
            await writer.drain()
        writer.write(b"bye")
        writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(answer(reader, writer)))
        returned.append(True)

    async with serving(connected) as served:
        reader, writer = await served.connect()
        writer.write(b"one\n")
        assert await received(reader, 4) == b"ONE\n"
        assert returned == [True]
        assert served.server.connections == 1
        writer.write(b"two\n")
        writer.write_eof()
        assert await received(reader) == b"TWO\nbye"
        writer.close()
        await eventually(lambda: served.server.connections == 0, "the connection ended")
        assert not served.events
        await asyncio.gather(*tasks)


async def test_a_coroutine_that_a_callback_returns_is_awaited(world: World) -> None:
    async def greet(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        writer.write(b"hello")

    async with serving(lambda _, writer: greet(writer)) as served:
        reader, writer = await served.connect()
        assert await received(reader) == b"hello"
        writer.close()


async def test_a_connection_that_is_lost_ends_without_its_callback(world: World) -> None:
    held = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        writer.write(b"hello")

    async with serving(connected) as served:
        reader, writer = await served.connect()
        assert await received(reader, 5) == b"hello"
        writer.transport.abort()
        held[0].write(b"into the void")
        await eventually(lambda: served.server.connections == 0, "the connection ended")
        assert held[0].is_closing()


@pytest.mark.parametrize("is_async", [False, True], ids=["callback", "handler"])
async def test_what_a_handler_raises_reaches_the_loops_exception_handler(world: World, is_async: bool) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    transports = []

    def fail(reader: Any, writer: asyncio.StreamWriter) -> None:
        transports.append(writer.transport)
        raise ZeroDivisionError("oops")

    async def fail_later(reader: Any, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        fail(reader, writer)

    async with serving(fail_later if is_async else fail) as served:
        reader, writer = await served.connect()
        writer.write(b"\n")
        assert await received(reader) == b""
        writer.close()
        await eventually(lambda: served.server.connections == 0, "the connection ended")
        assert len(of_kind(served.events, HandlerFailed)) == 1
    (context,) = seen
    assert context["message"] == "Unhandled exception in client_connected_cb"
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["transport"] is transports[0]


async def test_the_loop_is_told_of_lost_connections_too_and_never_of_a_cancellation(world: World) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline() == b"cancel\n":
            raise asyncio.CancelledError
        await reader.readexactly(100)

    async with serving(handle) as served:
        for line in (b"cancel\n", b"short\n"):
            reader, writer = await served.connect()
            writer.write(line)
            writer.write_eof()
            assert await received(reader) == b""
            writer.close()
        await eventually(lambda: served.server.connections == 0, "the connections ended")
        assert len(of_kind(served.events, ConnectionLost)) == 1
    assert [type(context["exception"]) for context in seen] == [asyncio.IncompleteReadError]


# --- what it is -------------------------------------------------------------------------------------------------------


async def test_reader_and_writer_are_instances_of_asyncios_classes_and_a_stream_is_not(world: World) -> None:
    seen = []

    async def handle(reader: Any, writer: Any) -> None:
        for each in (reader, writer):
            for kind in (asyncio.StreamReader, asyncio.StreamWriter, prefork.Stream):
                seen.append(isinstance(each, kind))

    async def handle_stream(stream: Any) -> None:
        seen.append(isinstance(stream, (asyncio.StreamReader, asyncio.StreamWriter)))

    for handler in (handle, handle_stream):
        async with serving(handler) as served:
            reader, writer = await served.connect()
            assert await received(reader) == b""
            writer.close()
            assert not served.events
    assert seen == [True] * 6 + [False]


async def test_start_tls_is_the_servers_side_whatever_name_is_given(world: World) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready\n")
        with pytest.raises(ValueError, match="ssl_handshake_timeout should be a positive number, got 0"):
            await writer.start_tls(server_context(), ssl_handshake_timeout=0)
        await writer.start_tls(server_context(), server_hostname="other.example", ssl_handshake_timeout=10.0)
        writer.write(await reader.readline())

    async with serving(handle) as served:
        reader, writer = await served.connect()
        assert await received(reader, 6) == b"ready\n"
        await writer.start_tls(client_context(), server_hostname="localhost")
        writer.write(b"secret\n")
        assert await received(reader, 7) == b"secret\n"
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# --- the transport ----------------------------------------------------------------------------------------------------


async def test_the_transport_is_one_object_that_pauses_reading(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        transport = stream.transport
        assert transport is stream.transport
        assert isinstance(transport, asyncio.Transport)
        assert transport.is_reading()
        reading = asyncio.ensure_future(stream.read(100))
        await asyncio.sleep(0)
        for _ in range(2):
            transport.pause_reading()
            assert not transport.is_reading()
        writer.write(b"late")
        await asyncio.wait([reading], timeout=0.05)
        assert not reading.done()
        assert not stream.at_eof()
        transport.resume_reading()
        assert transport.is_reading()
        assert await settled(reading) == b"late"
        transport.pause_reading()
        writer.write_eof()
        reading = asyncio.ensure_future(stream.read(100))
        await asyncio.wait([reading], timeout=0.05)
        assert not reading.done()
        transport.resume_reading()
        assert await settled(reading) == b""
        stream.close()
        assert not transport.is_reading()


async def test_a_transport_keeps_no_connection_alive_that_has_ended(world: World) -> None:
    streams, transports = [], []

    async def handle(reader: Any, writer: asyncio.StreamWriter) -> None:
        transports.append(weakref.ref(writer.transport))
        streams.append(weakref.ref(writer))
        await reader.readline()

    async with serving(handle) as served:
        gc.collect()
        gc.disable()
        try:
            _, writer = await served.connect()
            await eventually(lambda: transports, "the handler")
            transport = transports[0]()
            assert transport is not None
            assert not transport.is_closing()
            writer.close()
            await eventually(lambda: served.server.connections == 0, "the connection ended")
            assert transport.is_closing()
            del transport
            await eventually(lambda: not any(ref() for ref in (*streams, *transports)), "the release")
        finally:
            gc.enable()


async def test_a_paused_reader_is_not_idle_for_its_peers_fault(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        stream.timeouts.idle = 0.02
        stream.transport.pause_reading()
        reading = asyncio.ensure_future(stream.read(100))
        await asyncio.wait([reading], timeout=0.1)
        assert not reading.done()
        stream.transport.resume_reading()
        with pytest.raises(prefork.ConnectionTimeoutError):
            await settled(reading)


class Recorder(asyncio.Protocol):
    """Notes what it is called with."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.transport: Any = None

    def data_received(self, data: bytes) -> None:
        self.calls.append(data)
        if self.transport is not None:
            self.transport.write(data.upper())

    def eof_received(self) -> None:
        self.calls.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.calls.append(("lost", type(exc)))

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> bytearray:
        self.buffer = bytearray(3)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
async def test_a_protocol_that_a_handler_sets_has_the_connection_from_then_on(
    world: World, kind: type[Recorder]
) -> None:
    protocol = kind()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"> " + await reader.readline())
        protocol.transport = writer.transport
        writer.transport.set_protocol(protocol)
        assert writer.transport.get_protocol() is protocol

    async with serving(handle) as served:
        reader, writer = await served.connect()
        writer.write(b"upgrade\nfirst")
        assert await received(reader, 15) == b"> upgrade\nFIRST"
        writer.write(b"second")
        assert await received(reader, 6) == b"SECOND"
        writer.write_eof()
        assert await received(reader) == b""
        writer.close()
        await eventually(lambda: served.server.connections == 0, "the connection ended")
        await eventually(lambda: protocol.calls[-1] == ("lost", type(None)), "connection_lost")
        assert b"".join(call for call in protocol.calls if isinstance(call, bytes)) == b"firstsecond"
        assert protocol.calls[-2] == "eof"
        assert not served.events


async def test_the_first_protocol_gives_the_input_back_to_the_readers(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        transport = stream.transport
        mine, other = transport.get_protocol(), Recorder()
        transport.set_protocol(other)
        writer.write(b"theirs")
        await eventually(lambda: other.calls == [b"theirs"], "delivery")
        transport.pause_reading()
        transport.set_protocol(mine)
        transport.resume_reading()
        reading = asyncio.ensure_future(stream.read(100))
        writer.write(b"ours")
        assert await settled(reading) == b"ours"
        reading = asyncio.ensure_future(stream.read(100))
        await asyncio.sleep(0)
        with pytest.raises(prefork.StreamBusyError, match="while a coroutine is waiting"):
            transport.set_protocol(other)
        writer.write(b"!")
        assert await settled(reading) == b"!"
        assert other.calls == [b"theirs"]


async def test_a_protocol_is_paused_above_the_high_water_mark(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        protocol = Recorder()
        stream.transport.set_protocol(protocol)
        stream.transport.set_write_buffer_limits(high=8_000_000, low=1_000_000)
        stream.transport.write(b"w" * 15_000_000)
        assert protocol.calls == ["pause"]
        assert stream.transport.get_write_buffer_size() > 8_000_000
        while protocol.calls == ["pause"]:
            assert await settled(reader.read(1 << 16))
        assert protocol.calls == ["pause", "resume"]
        assert stream.transport.get_write_buffer_size() <= 1_000_000


async def test_a_protocol_that_cannot_be_paused_harms_nothing(world: World) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    class Broken(Recorder):
        def pause_writing(self) -> None:
            raise ZeroDivisionError

    async with world.connected() as (stream, reader, _):
        stream.transport.set_protocol(Broken())
        stream.transport.write(b"w" * 10_000_000)
        assert await received(reader, 10_000_000) == b"w" * 10_000_000
    assert [context["message"] for context in seen] == ["protocol.pause_writing() failed"]


async def test_what_a_protocol_raises_aborts_its_connection(world: World) -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    protocol = Broken()

    def connected(reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_protocol(protocol)

    async with serving(connected) as served:
        reader, writer = await served.connect()
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):
            await received(reader)
        writer.close()
        await eventually(lambda: served.server.connections == 0, "the connection ended")
    assert [type(context["exception"]) for context in seen] == [ZeroDivisionError]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_sendfile_sends_a_file_while_a_task_reads(world: World, tls: bool, tmp_path: Path) -> None:
    if world.flavour == "uvloop":
        pytest.skip("uvloop has no sendfile")
    path = tmp_path / "file"
    content = os.urandom(3_000_000)
    path.write_bytes(content)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reading = asyncio.ensure_future(reader.readline())
        await asyncio.sleep(0)
        writer.write(b"head\n")
        with path.open("rb") as file:
            sent = await asyncio.get_running_loop().sendfile(writer.transport, file, 1000)
        writer.write(b"\n%d\n" % sent)
        writer.write(await reading)

    async with serving(handle, tls) as served:
        options = {"ssl": client_context(), "server_hostname": "localhost"} if tls else {}
        reader, writer = await served.connect(**options)
        assert await received(reader, 5) == b"head\n"
        assert await received(reader, len(content) - 1000) == content[1000:]
        writer.write(b"done\n")
        assert await received(reader) == b"\n%d\ndone\n" % (len(content) - 1000)
        writer.close()
        assert not served.events


async def test_sendfile_ends_when_the_peer_has_gone(world: World, tmp_path: Path) -> None:
    if world.flavour == "uvloop":
        pytest.skip("uvloop has no sendfile")
    path = tmp_path / "file"
    path.write_bytes(b"f" * 10_000_000)
    raised = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with path.open("rb") as file:
            try:
                await asyncio.get_running_loop().sendfile(writer.transport, file)
            except OSError as exc:
                raised.append(exc)

    async with serving(handle) as served:
        reader, writer = await served.connect()
        assert await received(reader, 1000) == b"f" * 1000
        writer.transport.abort()
        await eventually(lambda: served.server.connections == 0, "the connection ended")
    assert [isinstance(exc, ConnectionError) for exc in raised] == [True]


# --- the end of input, and separators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
async def test_at_eof_is_true_as_soon_as_the_end_is_there(world: World, transport: str) -> None:
    world.transport = transport
    async with world.connected() as (stream, _, writer):
        assert not stream.at_eof()
        writer.write(b"last\n")
        assert await settled(stream.readline()) == b"last\n"
        assert not stream.at_eof()
        writer.close()
        await eventually(stream.at_eof, "the end of input")
        assert await settled(stream.read(1)) == b""


async def test_at_eof_keeps_what_it_receives(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.write(b"abc")
        assert await settled(stream.read(1)) == b"a"
        writer.write(b"def")
        writer.close()
        assert await settled(stream.readexactly(2)) == b"bc"
        read = b""
        while not stream.at_eof():
            read += await settled(stream.read(1))
        assert read == b"def"


async def test_at_eof_is_false_while_a_read_would_raise(world: World) -> None:
    async with world.raw() as (stream, peer):
        peer.send(b"x")
        assert await settled(stream.read(1)) == b"x"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        await eventually(lambda: stream.at_eof() or stream.is_closing(), "the reset")
        assert not stream.at_eof()
        with pytest.raises(ConnectionResetError):
            await settled(stream.read(1))


async def test_readuntil_goes_on_after_a_limit_overrun(world: World) -> None:
    world.limit(read_limit=3)
    async with world.connected() as (stream, _, writer):
        writer.write(b"some dataAA")
        with pytest.raises(asyncio.LimitOverrunError, match="not found") as caught:
            await settled(stream.readuntil(b"AAA"))
        assert caught.value.consumed == 9
        # What the first call left in the buffer is more than twice the limit: nothing more is received.
        assert await settled(stream.readexactly(8)) == b"some dat"
        writer.write(b"A-")
        assert await settled(stream.readuntil(b"AAA")) == b"aAAA"


async def test_readuntil_looks_at_what_has_arrived_since_the_overrun(world: World) -> None:
    world.limit(read_limit=6)
    async with world.connected() as (stream, _, writer):
        writer.write(b"12345678")
        with pytest.raises(asyncio.LimitOverrunError, match="not found"):
            await settled(stream.readuntil())
        writer.write(b"\n")
        overrun: list[asyncio.LimitOverrunError] = []

        async def found() -> bool:
            try:
                await stream.readuntil()
            except asyncio.LimitOverrunError as exc:
                overrun.append(exc)
            return "is found" in str(overrun[-1])

        while not await found():
            await asyncio.sleep(0.002)
        assert overrun[-1].consumed == 8
        assert await settled(stream.readexactly(9)) == b"12345678\n"


async def test_the_buffer_is_bounded_however_often_readuntil_fails(world: World) -> None:
    world.limit(read_limit=1000)
    async with world.connected() as (stream, _, writer):
        writer.write(b"x" * 3_000_000)
        for _ in range(100):
            with pytest.raises(asyncio.LimitOverrunError):
                await settled(stream.readuntil())
            await asyncio.sleep(0)
        assert stream._buffered <= 2000 + 65 * 1024
        writer.transport.abort()


async def test_messages_are_those_of_asyncio(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        for wrong in (b"", (b"",), (b"a", b"")):
            with pytest.raises(ValueError, match="Separator should be at least one-byte string"):
                await stream.readuntil(wrong)
        with pytest.raises(ValueError, match="Separator should contain at least one element"):
            await stream.readuntil(())
        reading = asyncio.ensure_future(stream.read(1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="while another coroutine is already waiting for incoming data"):
            await stream.read(1)
        reading.cancel()
