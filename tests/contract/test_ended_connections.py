"""What a server tells of a connection that has ended: for streams and protocols, over TCP, TLS and unix sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.streams import Serving, World, client_context, eventually

import prefork
from prefork.config import Limits
from prefork.core.account import CloseReason
from prefork.core.ended_connection import EndedConnection


@pytest.fixture
def world() -> World:
    return World("asyncio", "tcp")


async def echo(stream: prefork.Stream) -> None:
    async for line in stream:
        await stream.send(line)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("handler", [echo, Echo])
async def test_an_end_has_addresses_bytes_tls_and_reason(world: World, handler: Any, tls: bool) -> None:
    ended: list[EndedConnection] = []
    async with Serving(handler, Limits(), tls) as served:
        served.server.observers.on_ended = ended.append
        options: dict[str, Any] = {"ssl": client_context(), "server_hostname": "localhost"} if tls else {}
        reader, writer = await served.connect(**options)
        writer.write(b"x" * 99 + b"\n")
        assert len(await reader.readexactly(100)) == 100
        peer = writer.get_extra_info("sockname")
        writer.close()
        await eventually(lambda: ended, "the end")
        (found,) = ended
        assert (found.address, found.local) == (peer, served.where)
        assert (found.tls, found.reason) == ("TLSv1.3" if tls else "", CloseReason.DONE)
        if tls:
            assert 100 < found.received < 2000
            assert 100 < found.sent < 4000
        else:
            # A FIN counts as one byte that the peer has acknowledged.
            assert found.received in (100, 101)
            assert found.sent == 100
        assert 0 < found.seconds < 60


async def test_an_end_on_a_unix_socket_and_a_refusal(world: World, tmp_path: Path) -> None:
    ended: list[EndedConnection] = []
    path = str(tmp_path / "s")
    limits = Limits(max_connections=1, at_limit="refuse")
    with prefork.bind_unix_socket(path) as listener:
        async with Serving(echo, limits) as served:
            await end_two(served, listener, ended)
    assert [each.reason for each in ended] == [CloseReason.MAX_CONNECTIONS, CloseReason.DONE]
    assert {each.local for each in ended} == {path}


async def end_two(served: Serving, listener: socket.socket, ended: list[EndedConnection]) -> None:
    """Have one connection refused because there is one already, and end that one."""
    served.server.observers.on_ended = ended.append
    served.server.add_socket(listener)
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(listener.getsockname())
        await eventually(lambda: served.server.connections, "it was accepted")
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(listener.getsockname())
            await eventually(lambda: len(ended) == 1, "it was refused")
    await eventually(lambda: len(ended) == 2, "the end")
