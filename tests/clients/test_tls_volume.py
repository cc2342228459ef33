"""More than 2 GiB over one TLS connection in each direction, beyond what an int counts, with empty writes in between."""

from __future__ import annotations

import socket
import ssl
import threading
import zlib
from pathlib import Path

import pytest

from prefork.testing import run_server

pytestmark = pytest.mark.slow
CHUNK = bytes(range(256)) * 4096
CHUNKS = 2**31 // len(CHUNK) + 3
SERVICE = """
import zlib
async def handle(stream):
    checksum = 0
    while data := await stream.read(1 << 20):
        checksum = zlib.crc32(data, checksum)
        stream.write(b"")
        await stream.send(data)
    stream.write(b"%010d" % checksum)
"""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
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
        sent, received, size = 0, 0, 0
        answer = bytearray(len(CHUNK))

        def send() -> None:
            for _ in range(CHUNKS):
                tls.sendall(CHUNK)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        while size < CHUNKS * len(CHUNK):
            count = tls.recv_into(answer)
            assert count, f"ended after {size} bytes"
            received = zlib.crc32(memoryview(answer)[:count], received)
            size += count
        sender.join(60)
        for _ in range(CHUNKS):
            sent = zlib.crc32(CHUNK, sent)
        assert received == sent
