"""`prefork.connect`: a stream on a connection that this program opens, and everything that can go wrong before."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import ssl
import weakref

import pytest
from helpers.streams import FLAVOURS, Serving, World, client_context

import prefork
from prefork.config import Limits
from prefork.net import outgoing


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


async def echo(stream: prefork.Stream) -> None:
    async for line in stream:
        stream.write(line)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_stream_reads_writes_and_ends_each_direction(world: World) -> None:
    async with Serving(echo, Limits()) as serving:
        port = serving.where[1]
        async with await prefork.connect("127.0.0.1", port) as stream:
            assert stream.peer == f"127.0.0.1:{port}"
            await stream.send(b"one\ntwo\nthree")
            stream.write_eof()
            assert await stream.read() == b"one\ntwo\nthree"
            assert not stream.draining
        # From another address of this machine, by name, and with the limits that the loop's server has.
        limits = Limits(read_limit=100, max_age=1)
        outgoing.configure_outgoing(asyncio.get_running_loop(), limits, serving.events.append)
        async with await prefork.connect("localhost", port, local_address="127.0.0.9") as stream:
            assert stream.local.startswith("127.0.0.9:")
            stream.write(b"long" * 99 + b"\n")
            with pytest.raises(prefork.LineTooLongError):
                await stream.readline()
            assert stream.timeouts.age is None


@pytest.mark.parametrize("name", ["a..b", "a" * 70 + ".example", "a\0b"])
async def test_what_can_be_no_name_does_not_resolve(world: World, name: str) -> None:
    """A name that comes from a peer, as by SNI, must not raise what only a programmer's error does."""
    with pytest.raises(socket.gaierror):
        await prefork.connect(name, 9)


async def test_the_local_address_is_never_looked_up(world: World) -> None:
    """The lookup of a name by bind(2) would stop the loop."""
    with pytest.raises(prefork.ConfigError, match="local_address localhost: must be an IP address"):
        await prefork.connect("127.0.0.1", 9, local_address="localhost")


async def test_tls_is_checked_against_the_name(world: World) -> None:
    async with Serving(echo, Limits(), tls=True) as serving:
        async with await prefork.connect("127.0.0.1", serving.where[1], tls=client_context()) as stream:
            assert stream.tls is not None
            assert stream.tls.version == "TLSv1.3"
            await stream.send(b"hello\n")
            assert await stream.readline() == b"hello\n"
        before = descriptors()
        with pytest.raises(ssl.SSLCertVerificationError):
            await prefork.connect(
                "127.0.0.1", serving.where[1], tls=client_context(), server_hostname="elsewhere.example"
            )
        await asyncio.sleep(0)
        assert descriptors() <= before + 1


async def test_the_next_address_is_tried_and_the_last_failure_raised(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Serving(echo, Limits()) as serving:
        port = serving.where[1]
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            closed = unused.getsockname()

            async def resolve(*_: object) -> list[tuple[int, object]]:
                return [(socket.AF_INET, closed), (socket.AF_INET, ("127.0.0.1", port))]

            with pytest.raises(ConnectionRefusedError, match=rf"connect to 127\.0\.0\.1:{closed[1]}: .+"):
                await prefork.connect("127.0.0.1", closed[1])
            with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
                await prefork.connect("127.0.0.1", port, local_address="192.0.2.1")
            monkeypatch.setattr(outgoing, "_resolve", resolve)
            async with await prefork.connect("name", port) as stream:
                assert stream.peer == f"127.0.0.1:{port}"


async def test_a_peer_that_never_answers_takes_no_longer_than_the_timeout(world: World) -> None:
    with socket.socket() as listener, contextlib.ExitStack() as filling:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        where = listener.getsockname()
        # With a full accept queue the kernel drops further connections, so that the next one gets no answer.
        for _ in range(2):
            sock = filling.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(where)
        before = descriptors()
        with pytest.raises(prefork.ConnectionTimeoutError, match=r"not connected within 0\.1 s") as failed:
            await prefork.connect(*where, timeout=0.1)
        assert isinstance(failed.value, TimeoutError)
        connecting = asyncio.ensure_future(prefork.connect(*where, timeout=60))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert descriptors() <= before + 1


async def test_a_handshake_is_within_the_timeout(world: World) -> None:
    async def silent(stream: prefork.Stream) -> None:
        assert await stream.read() is not None

    async with Serving(silent, Limits()) as serving:
        with pytest.raises(prefork.ConnectionTimeoutError, match="not connected within"):
            await prefork.connect(*serving.where, tls=client_context(), timeout=0.1)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "soon"}, {"port": 0}, {"port": 65536}])
async def test_values_that_cannot_be_used_are_refused(world: World, options: dict[str, object]) -> None:
    with pytest.raises(prefork.ConfigError):
        await prefork.connect("127.0.0.1", **{"port": 9, **options})  # type: ignore[arg-type]  # that is the test


def test_a_loop_that_is_gone_leaves_no_state() -> None:
    async def main() -> weakref.ref[object]:
        async with Serving(echo, Limits()) as serving, await prefork.connect(*serving.where):
            pass
        return weakref.ref(asyncio.get_running_loop())

    gc.collect()
    before = descriptors()
    reference = asyncio.run(main())
    gc.collect()
    assert reference() is None
    assert descriptors() == before
