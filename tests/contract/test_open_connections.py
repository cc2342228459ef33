"""What a server tells of its open connections: of every kind of handler, and in every phase."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest
from helpers.streams import client_context, eventually, observed_server, server_context

from prefork.core.account import CloseReason
from prefork.core.console_protocol import PHASES
from prefork.net.open_connection import OpenConnection


async def handle(stream: Any) -> None:
    async for line in stream:
        stream.write(line * 100_000 if line == b"much\n" else line)


async def reader_writer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line * 100_000 if line == b"much\n" else line)


class Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data * 100_000 if data.startswith(b"much") else data)


KINDS = {"stream": handle, "reader-writer": reader_writer, "protocol": Echo}


def told(server: Any) -> list[OpenConnection]:
    found = [each.describe(server.uses_tls) for each in server.open_connections()]
    assert all(each.phase in PHASES for each in found)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_every_kind_of_connection_is_described(kind: str, tls: bool) -> None:
    async def main() -> None:
        options = {"tls": server_context()} if tls else {}
        async with observed_server(KINDS[kind], lambda event: None, **options) as server:
            server.listen(0, "127.0.0.1")
            where = server.sockets[0].getsockname()
            loop = asyncio.get_running_loop()
            before = loop.time()
            silent = await asyncio.open_connection(*where)
            await eventually(lambda: len(told(server)) == 1)
            (first,) = told(server)
            assert (first.phase, first.tls) == ("handshake" if tls else "open", "")
            security: dict[str, Any] = {"ssl": client_context(), "server_hostname": "localhost"} if tls else {}
            reader, writer = await asyncio.open_connection(*where, **security)
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            found = {each.address: each for each in told(server)}
            second = found[writer.get_extra_info("sockname")]
            assert (second.phase, second.tls, second.unsent) == ("open", "TLSv1.3" if tls else "", 0)
            assert second.number == first.number + 1
            assert before <= first.accepted_at <= second.accepted_at <= loop.time()
            assert os.fstat(second.fd).st_ino != os.fstat(first.fd).st_ino
            # It does not read the answer, so that most of that stays in the server.
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's transports have it
            writer.write(b"much\n" * 30)
            # asyncio's transport for TLS does not count what it has encrypted.
            if not (tls and kind == "protocol"):
                await eventually(lambda: max(each.unsent for each in told(server)) > 0)
            silent[1].close()
            for each in server.open_connections():
                each.abort(CloseReason.KICKED)
            await eventually(lambda: server.connections == 0)
            writer.close()

    asyncio.run(main())


def test_a_connection_that_closes_says_so() -> None:
    async def main() -> None:
        async with observed_server(handle, lambda event: None) as server:
            server.listen(0, "127.0.0.1")
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                await eventually(lambda: len(told(server)) == 1)
                server.close_clients()
                # Its end is sent, and that of the client awaited.
                await eventually(lambda: [each.phase for each in told(server)] == ["lingering"])
                assert told(server)[0].fd >= 0
                client.close()
            await eventually(lambda: not told(server))

    asyncio.run(main())
