"""What every stream promises, on every loop and over every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import struct
import time

import pytest
from helpers.streams import FLAVOURS, TRANSPORTS, World, eventually, settled

from prefork.errors import ConnectionOverflowError, ConnectionTimeoutError, LineTooLongError, StreamBusyError
from prefork.events import ConnectionAborted
from prefork.net.channel import ConnectionPhase
from prefork.net.stream import call_when_closed


@pytest.fixture(params=[f"{flavour}/{transport}" for flavour in FLAVOURS for transport in TRANSPORTS])
def world(request: pytest.FixtureRequest) -> World:
    flavour, transport = request.param.split("/")
    return World(flavour, transport)


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_read_returns_what_is_buffered_up_to_n(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.write(b"abcdef")
        assert await stream.readexactly(1) == b"a"
        assert await stream.read(3) == b"bcd"
        assert await stream.read(100) == b"ef"
        assert await stream.read(0) == b""


async def test_read_waits_for_input(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        reading = asyncio.ensure_future(stream.read(10))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not reading.done()
        writer.write(b"x")
        assert await settled(reading) == b"x"


async def test_read_to_the_end_of_input(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        data = bytes(range(256)) * 4096
        writer.write(data)
        reading = asyncio.ensure_future(stream.read())
        await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
        assert await settled(reading) == data
        assert stream.at_eof()
        assert await stream.read(10) == b""
        assert await stream.read() == b""
        assert await stream.readline() == b""
        assert await stream.readexactly(0) == b""


async def test_readexactly_raises_if_the_end_comes_too_soon(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.write(b"12345")
        assert await stream.readexactly(2) == b"12"
        with pytest.raises(ValueError, match="less than zero"):
            await stream.readexactly(-1)
        reading = asyncio.ensure_future(stream.readexactly(4))
        await asyncio.sleep(0)
        writer.close()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await settled(reading)
        assert (caught.value.partial, caught.value.expected) == (b"345", 4)


async def test_readline_returns_each_line_and_the_unfinished_last_one(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.write(b"one\ntwo\n\nlast")
        writer.close()
        assert [line async for line in stream] == [b"one\n", b"two\n", b"\n", b"last"]


async def test_readuntil_finds_a_separator_that_comes_in_pieces(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        reading = asyncio.ensure_future(stream.readuntil(b"\r\n\r\n"))
        for piece in (b"head\r", b"\n", b"\r", b"\nbody"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
        assert await settled(reading) == b"head\r\n\r\n"
        assert await stream.read(10) == b"body"


async def test_readuntil_with_several_separators_uses_the_one_that_ends_first(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.write(b"a;b\r\nc\nd")
        assert await stream.readuntil((b"\r\n", b"\n", b";")) == b"a;"
        assert await stream.readuntil((b"\r\n", b"\n", b";")) == b"b\r\n"
        assert await stream.readuntil((b"\r\n", b"\n")) == b"c\n"
        with pytest.raises(ValueError, match="at least one"):
            await stream.readuntil(b"")
        with pytest.raises(ValueError, match="at least one"):
            await stream.readuntil(())
        writer.close()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await stream.readuntil(b"\n")
        assert caught.value.partial == b"d"


async def test_readuntil_stops_at_the_limit_and_loses_nothing(world: World) -> None:
    world.limit(read_limit=10)
    async with world.connected() as (stream, _, writer):
        writer.write(b"0123456789\n" + b"x" * 30 + b"\nshort\n")
        assert await stream.readuntil() == b"0123456789\n"
        with pytest.raises(asyncio.LimitOverrunError):
            await stream.readuntil()
        assert await stream.readexactly(31) == b"x" * 30 + b"\n"
        assert await stream.readline() == b"short\n"


async def test_readline_drops_an_overlong_line_and_goes_on(world: World) -> None:
    world.limit(read_limit=10)
    async with world.connected() as (stream, _, writer):
        writer.write(b"x" * 11 + b"\nnext\n")
        await eventually(lambda: True)
        with pytest.raises(LineTooLongError):
            await stream.readline()
        assert await stream.readline() == b"next\n"


async def test_buffered_input_is_bounded_while_the_handler_does_not_read(world: World) -> None:
    """What the peer sends stays in the kernel, whose buffers are full at some point; ours never grows past one read."""
    async with world.connected() as (stream, _, writer):
        writer.transport.set_write_buffer_limits(high=0)
        data = b"z" * (1 << 20)

        async def flood() -> None:
            for _ in range(64):
                writer.write(data)
                await writer.drain()

        flooding = asyncio.ensure_future(flood())
        assert await stream.read(1) == b"z"
        await asyncio.sleep(0.05)
        assert stream._buffered <= 128 * 1024
        assert not flooding.done()
        flooding.cancel()


async def test_two_readers_at_once_are_refused_and_the_first_keeps_waiting(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        first = asyncio.ensure_future(stream.readline())
        await asyncio.sleep(0)
        with pytest.raises(StreamBusyError):
            await stream.read(1)
        writer.write(b"for the first\n")
        assert await settled(first) == b"for the first\n"


async def test_a_cancelled_read_loses_no_byte(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        expected = b"".join(b"%06d\n" % i for i in range(300))
        received = bytearray()

        async def feed() -> None:
            for at in range(0, len(expected), 5):
                writer.write(expected[at : at + 5])
                await writer.drain()
                await asyncio.sleep(0)

        feeding = asyncio.ensure_future(feed())
        reads = (lambda: stream.readexactly(14), stream.readline, lambda: stream.readuntil(b"0\n"))
        turn = cancelled = 0
        while len(received) < len(expected) - 14:
            reading = asyncio.ensure_future(reads[turn % 3]())
            turn += 1
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            reading.cancel()
            try:
                received += await reading
            except asyncio.CancelledError:
                cancelled += 1
        await feeding
        writer.close()
        received += await stream.read()
        assert bytes(received) == expected
        assert cancelled > 0


async def test_a_timeout_around_a_read_loses_no_byte(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await stream.readline()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.read(1), 0.01)
        writer.write(b"still here\n")
        assert await asyncio.wait_for(stream.readline(), 5) == b"still here\n"


async def test_a_fast_peer_does_not_starve_the_rest(world: World) -> None:
    """A handler that always finds input never waits by itself; others get their turn all the same."""
    async with world.connected() as (stream, reader, writer):
        stop = False

        async def shout() -> None:
            while not stop:
                writer.write(b"y" * 65536)
                await writer.drain()

        async def read_all() -> None:
            while not stop:
                await stream.read(65536)

        shouting, reading = asyncio.ensure_future(shout()), asyncio.ensure_future(read_all())
        for _ in range(100):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        stop = True
        shouting.cancel()
        writer.transport.abort()
        await asyncio.wait({shouting, reading})
        assert not isinstance(reading.exception(), AssertionError)


# --- writing ----------------------------------------------------------------------------------------------------------


async def test_what_is_written_arrives_in_order(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        stream.write(b"one ")
        stream.write(bytearray(b"two "))
        stream.write(memoryview(b"three "))
        stream.writelines([b"four ", b"", b"five "])
        await stream.send(b"six")
        assert await reader.readexactly(27) == b"one two three four five six"


async def test_write_rejects_what_is_not_bytes(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        for wrong in ("text", 5, None, [1]):
            with pytest.raises(TypeError):
                stream.write(wrong)  # type: ignore[arg-type]  # that is the test


async def test_a_written_buffer_may_be_changed_afterwards(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        data = bytearray(b"a" * 100_000)
        stream.write(data)
        data[:] = b"b" * 100_000
        await stream.drain()
        assert await reader.readexactly(100_000) == b"a" * 100_000


async def test_writes_go_out_without_drain_when_the_handler_waits_for_something_else(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        stream.write(b"now")
        # This task never touches the stream again.
        assert await settled(reader.readexactly(3)) == b"now"


async def test_writes_go_out_when_the_handler_waits_for_input(world: World) -> None:
    async with world.connected() as (stream, reader, writer):

        async def handler() -> None:
            async for line in stream:
                stream.write(line.upper())

        serving = asyncio.ensure_future(handler())
        for _ in range(3):
            writer.write(b"a\nb\nc\n")
            assert await settled(reader.readexactly(6)) == b"A\nB\nC\n"
        writer.close()
        await settled(serving)


async def test_drain_waits_while_the_peer_does_not_read(world: World) -> None:
    async with world.connected() as (stream, reader, writer):
        chunk = b"0123456789abcdef" * 4096
        total = 0

        async def pour() -> None:
            nonlocal total
            for _ in range(400):
                await stream.send(chunk)
                total += len(chunk)

        pouring = asyncio.ensure_future(pour())
        await asyncio.sleep(0.05)
        assert not pouring.done()
        assert stream.unsent <= 64 * 1024 + len(chunk) + 4096
        received = 0
        while received < 400 * len(chunk):
            received += len(await reader.read(1 << 20))
        await settled(pouring)
        assert total == 400 * len(chunk)


async def test_several_tasks_may_wait_in_drain(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        chunk = b"q" * 3_000_000
        senders = [asyncio.ensure_future(stream.send(chunk)) for _ in range(4)]
        await asyncio.sleep(0)
        cancelled = asyncio.ensure_future(stream.send(b""))
        await asyncio.sleep(0)
        cancelled.cancel()
        received = 0
        while received < 4 * len(chunk):
            received += len(await reader.read(1 << 20))
        await settled(asyncio.gather(*senders))


async def test_a_large_write_arrives_whole(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        data = b"".join(i.to_bytes(4, "big") for i in range(500_000))
        stream.write(data)
        received = bytearray()
        while len(received) < len(data):
            received += await settled(reader.read(1 << 20))
        assert received == data


async def test_reads_wait_while_too_much_is_unsent(world: World) -> None:
    """A handler that never drains is held to the pace of its peer."""
    async with world.connected() as (stream, reader, writer):
        answer = b"r" * 100_000
        served = 0

        async def handler() -> None:
            nonlocal served
            async for _ in stream:
                stream.write(answer)
                served += 1

        serving = asyncio.ensure_future(handler())
        requests = 300
        writer.write(b"\n" * requests)
        received = most = 0
        while received < requests * len(answer):
            received += len(await settled(reader.read(1 << 20)))
            most = max(most, stream.unsent)
        # All requests came in one read; those beyond what may be unsent waited in the buffer.
        assert 1 << 20 < most <= (1 << 20) + 2 * len(answer)
        assert served == requests
        writer.close()
        await settled(serving)
    assert world.events == []


@pytest.mark.slow
async def test_a_paused_reader_after_the_end_of_input_does_not_spin(world: World) -> None:
    """A last question without a newline, a large answer, and a peer that does not read."""
    if world.transport == "tls":
        pytest.skip("TLS has no half-close")
    async with world.raw() as (stream, peer):
        lines: list[bytes] = []

        async def handler() -> None:
            async for line in stream:
                lines.append(line)
                stream.write(bytes(8 << 20))

        serving = asyncio.ensure_future(handler())
        peer.send(b"first\nlast")
        peer.shutdown(socket.SHUT_WR)
        await eventually(lambda: lines)
        await asyncio.sleep(0.05)
        spent = time.thread_time()
        await asyncio.sleep(0.3)
        assert time.thread_time() - spent < 0.1
        loop, received = asyncio.get_running_loop(), 0
        while received < 2 * (8 << 20):
            received += len(await settled(loop.sock_recv(peer, 1 << 20)))
        await settled(serving)
        assert lines == [b"first\n", b"last"]


async def test_a_paused_reader_learns_that_the_peer_is_gone(world: World) -> None:
    async with world.raw() as (stream, peer):
        stream.write(bytes(12 << 20))
        reading = asyncio.ensure_future(stream.read(10))
        await asyncio.sleep(0.02)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with contextlib.suppress(ConnectionError):
            assert await settled(reading) == b""


async def test_a_cancellation_reaches_the_task_that_it_was_meant_for(world: World) -> None:
    """Another task reads before the cancelled one has received its cancellation."""
    async with world.connected() as (stream, _, writer):
        cancelled = asyncio.ensure_future(stream.read(100))
        await asyncio.sleep(0.01)

        async def other() -> bytes:
            cancelled.cancel()
            writer.write(b"for the other one")
            return await stream.read(100)

        reading = asyncio.ensure_future(other())
        assert await settled(reading) == b"for the other one"
        with pytest.raises(asyncio.CancelledError):
            await settled(cancelled)


async def test_too_much_unsent_aborts_the_connection_and_says_so(world: World) -> None:
    world.limit(abort_above=1_000_000)
    async with world.connected() as (stream, _, _writer):
        for _ in range(200):
            stream.write(b"m" * 100_000)
        assert stream.is_closing()
        with pytest.raises(ConnectionOverflowError):
            await stream.drain()
        with pytest.raises(ConnectionOverflowError):
            await stream.read(1)
        stream.write(b"dropped")
        assert stream.unsent == 0
    (event,) = world.events
    assert isinstance(event, ConnectionAborted)
    assert "unsent, limit 1000000 (Limits.abort_above)" in str(event)


async def test_a_peer_that_reads_nothing_is_aborted_after_the_write_timeout(world: World) -> None:
    world.limit(write_timeout=0.2)
    async with world.connected() as (stream, _, writer):
        writer.transport.pause_reading()
        with pytest.raises(ConnectionTimeoutError):
            while True:
                await stream.send(b"s" * 100_000)
    assert [type(event) for event in world.events] == [ConnectionAborted]


async def test_drain_raises_once_the_peer_is_gone_and_writes_are_dropped(world: World) -> None:
    async with world.connected() as (stream, _, writer):
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                await stream.send(b"x" * 1000)
        stream.write(b"more")
        assert stream.unsent == 0
        assert stream.is_closing()


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [f"{flavour}/tcp" for flavour in FLAVOURS], indirect=True)
async def test_urgent_data_is_not_part_of_the_stream(world: World) -> None:
    """A byte out of band (RFC 6093) is neither read in its place nor does it shift what comes before and after it."""
    async with world.connected() as (stream, _, writer):
        raw = writer.get_extra_info("socket")
        for number in range(20):
            writer.write(b"before %d\n" % number)
            await writer.drain()
            # asyncio's socket has no such flag; its descriptor has.
            with socket.socket(fileno=os.dup(raw.fileno())) as sock:
                sock.send(b"!", socket.MSG_OOB)
            writer.write(b"after %d\n" % number)
            # Not more than one at a time: the next one would make it a byte like any other.
            assert await settled(stream.readline()) == b"before %d\n" % number
            assert await settled(stream.readline()) == b"after %d\n" % number


async def test_half_close_from_the_peer_leaves_our_direction_open(world: World) -> None:
    if world.transport == "tls":
        pytest.skip("TLS has no half-close")
    async with world.connected() as (stream, reader, writer):
        writer.write(b"question")
        writer.write_eof()
        assert await stream.read() == b"question"
        assert not stream.is_closing()
        for i in range(5):
            await stream.send(b"answer %d\n" % i)
            assert await reader.readline() == b"answer %d\n" % i
        stream.close()
        assert await settled(reader.read()) == b""


async def test_write_eof_leaves_the_peers_direction_open(world: World) -> None:
    async with world.connected() as (stream, reader, writer):
        if world.transport == "tls":
            assert not stream.can_write_eof()
            with pytest.raises(NotImplementedError):
                stream.write_eof()
            return
        assert stream.can_write_eof()
        stream.write(b"all I say" * 100_000)
        stream.write_eof()
        assert await settled(reader.read()) == b"all I say" * 100_000
        with pytest.raises(RuntimeError, match="write_eof"):
            stream.write(b"one more thing")
        writer.write(b"heard\n")
        assert await stream.readline() == b"heard\n"
        stream.write_eof()


async def test_close_delivers_everything_even_to_a_peer_that_is_still_sending(world: World) -> None:
    # The peer takes what is left in its own time: on a busy machine longer than the default.
    world.limit(linger_timeout=15, tls_shutdown_timeout=15)
    async with world.connected() as (stream, reader, writer):
        reply = b"R" * 4_000_000

        async def talk() -> None:
            while True:
                writer.write(b"blah" * 4096)
                await writer.drain()

        talking = asyncio.ensure_future(talk())
        await stream.read(100)
        stream.write(reply)
        stream.close()
        assert stream.is_closing()
        received = bytearray()
        try:
            while chunk := await settled(reader.read(1 << 18)):
                received += chunk
        except ConnectionError as exc:
            raise AssertionError(f"{exc!r} after {len(received)} bytes") from exc
        assert bytes(received) == reply
        talking.cancel()
        await asyncio.wait({talking})


async def test_wait_closed_returns_when_everything_is_sent(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        async with stream:
            stream.write(b"w" * 3_000_000)
            reading = asyncio.ensure_future(reader.read())
        assert stream.unsent == 0
        assert await settled(reading) == b"w" * 3_000_000
        await stream.wait_closed()
        stream.close()


async def test_close_gives_a_waiting_reader_the_end_and_stops_writes(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        reading = asyncio.ensure_future(stream.read(1))
        await asyncio.sleep(0)
        stream.close()
        assert await settled(reading) == b""
        stream.write(b"nothing of this")
        with pytest.raises(ConnectionResetError):
            await stream.drain()
        assert await stream.read() == b""
        assert stream.at_eof()


async def test_a_closed_stream_closes_its_descriptor_when_the_peer_has_closed(world: World) -> None:
    closed: list[bool] = []
    async with world.connected() as (stream, reader, writer):
        call_when_closed(stream, lambda: closed.append(True))
        stream.close()
        assert await settled(reader.read()) == b""
        writer.close()
        await eventually(lambda: closed, "closing the socket")
        assert stream.get_extra_info("socket").fileno() == -1
    assert closed == [True]


async def test_lingering_ends_when_the_peer_does_not(world: World) -> None:
    world.limit(linger_timeout=0.1, tls_shutdown_timeout=0.1)
    closed: list[bool] = []
    async with world.connected() as (stream, _, _writer):
        call_when_closed(stream, lambda: closed.append(True))
        stream.write(b"bye")
        stream.close()
        await eventually(lambda: closed, "the end of lingering")
    assert world.events == []


async def test_abort_drops_everything_at_once(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        reading = asyncio.ensure_future(stream.read(1))
        draining = asyncio.ensure_future(stream.send(b"u" * 8_000_000))
        await asyncio.sleep(0)
        stream.transport.abort()
        assert await settled(reading) == b""
        with pytest.raises(ConnectionResetError):
            await settled(draining)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await settled(reader.readexactly(8_000_000))
        stream.abort()


async def test_on_closed_is_called_once_whatever_ends_the_connection(world: World) -> None:
    for way in ("close", "abort", "peer aborts", "overflow"):
        ended: list[str] = []
        async with world.connected() as (stream, _, writer):
            call_when_closed(stream, functools.partial(ended.append, way))
            if way == "close":
                stream.close()
                writer.close()
            elif way == "abort":
                stream.abort()
            elif way == "overflow":
                stream.write(b"v" * 40_000_000)
            else:
                writer.transport.abort()
                stream.close()
            await eventually(lambda ended=ended: ended, way)
            stream.close()
            stream.abort()
        assert ended == [way]


# --- information ------------------------------------------------------------------------------------------------------


async def test_get_extra_info_and_the_transport_answer_as_asyncio_does(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        sock = stream.get_extra_info("socket")
        assert isinstance(sock, socket.socket)
        assert stream.get_extra_info("sockname") == sock.getsockname()
        assert stream.get_extra_info("peername") == sock.getpeername()
        assert stream.get_extra_info("nonsense", 7) == 7
        assert stream.transport.get_extra_info("nonsense", 8) == 8
        assert not stream.transport.is_closing()
        assert stream.id >= 1
        assert not stream.draining
        if world.transport == "tls":
            assert stream.tls is not None
            assert stream.tls.version == "TLSv1.3"
            assert stream.tls.sni == "localhost"
            assert stream.tls.alpn is None
            assert not stream.tls.resumed
            assert stream.tls.peer_certificate is None
            assert stream.get_extra_info("cipher") == stream.tls.cipher
            assert stream.get_extra_info("ssl_object") is stream.tls.ssl_object
        else:
            assert stream.tls is None
            assert stream.get_extra_info("ssl_object") is None
        if world.transport in ("tcp", "tls"):
            assert stream.peer.startswith("127.0.0.1:")
            assert stream.local.startswith("127.0.0.1:")
        else:
            assert stream.peer == "unix"


async def test_write_buffer_limits_are_computed_as_asyncio_does(world: World) -> None:
    given = [(), (1000,), (None, 100), (1000, 900), (0,), (0, 0)]

    async with world.connected() as (stream, _, writer):
        ours, theirs = stream.transport, writer.transport
        for limits in given:
            ours.set_write_buffer_limits(*limits)
            if world.flavour != "uvloop" and world.transport != "tls":
                theirs.set_write_buffer_limits(*limits)
                assert ours.get_write_buffer_limits() == theirs.get_write_buffer_limits()
        for wrong in ((1, 2), (-1,), (None, -1)):
            with pytest.raises(ValueError, match="must be >="):
                ours.set_write_buffer_limits(*wrong)
        ours.set_write_buffer_limits(1000, 900)
        assert stream.drain_above == 1000
        stream.drain_above = 400
        assert ours.get_write_buffer_limits() == (100, 400)


async def test_drain_returns_at_the_low_water_mark(world: World) -> None:
    async with world.connected() as (stream, reader, _):
        stream.transport.set_write_buffer_limits(high=8_000_000, low=7_000_000)
        stream.write(b"w" * 15_000_000)
        draining = asyncio.ensure_future(stream.drain())
        while not draining.done():
            await settled(reader.read(1 << 16))
        # A step of the backlog may take the unsent bytes further below the mark.
        assert 1_000_000 < stream.unsent <= 7_000_000
        await draining


async def test_a_phase_cannot_be_skipped_back(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        with pytest.raises(RuntimeError, match="from OPEN to LINGERING"):
            stream._enter(ConnectionPhase.LINGERING)
        stream.abort()
        for phase in ConnectionPhase:
            with pytest.raises(RuntimeError, match="from CLOSED"):
                stream._enter(phase)


async def test_wait_draining_returns_when_the_server_drains(world: World) -> None:
    async with world.connected() as (stream, _, _writer):
        waiting = asyncio.ensure_future(stream.wait_draining())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert world.server_state is not None
        world.server_state.draining.set()
        await settled(waiting)
        assert stream.draining
