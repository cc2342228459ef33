"""More than 2 GiB over one TLS connection in each direction, beyond what an int counts; empty writes in between."""

from __future__ import annotations

import socket
import ssl
import zlib
from pathlib import Path

import pytest

from prefork.testing import run_server

pytestmark = [pytest.mark.slow, pytest.mark.deadline(900)]
#: So small that both fit into the buffers of the sockets, because the client sends the whole before it reads.
CHUNK = bytes(range(256)) * 256
CHUNKS = 2**31 // len(CHUNK) + 3
SERVICE = """
async def handle(stream):
    while data := await stream.read(1 << 20):
        stream.write(b"")
        await stream.send(data)
"""


@pytest.mark.parametrize(("version", "loop"), [(ssl.TLSVersion.TLSv1_2, "asyncio"), (ssl.TLSVersion.TLSv1_3, "uvloop")])
def test_more_than_2_gib_come_back_as_they_were_sent(
    certs: dict[str, str], tmp_path: Path, version: ssl.TLSVersion, loop: str
) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    context = ssl.create_default_context(cafile=certs["ca"])
    context.minimum_version = context.maximum_version = version
    options = ["--tls-cert", certs["cert"], "--tls-key", certs["key"], "-w", "1", "--loop", loop]
    with (
        run_server("service:handle", *options, cwd=tmp_path) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        answer, checksum, expected = bytearray(len(CHUNK)), 0, 0
        for _ in range(CHUNKS):
            tls.sendall(CHUNK)
            size = 0
            while size < len(CHUNK):
                count = tls.recv_into(memoryview(answer)[size:])
                assert count, "the server has ended the connection"
                size += count
            checksum, expected = zlib.crc32(answer, checksum), zlib.crc32(CHUNK, expected)
        assert checksum == expected
