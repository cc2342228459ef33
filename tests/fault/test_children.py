"""A handler forks: its child holds the sockets of all connections, and nobody's peer notices."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from servers import serving

SERVICE = """
import os, time

async def handle(stream):
    async for line in stream:
        if line == b"fork\\n" and not os.fork():
            time.sleep(60)
            os._exit(0)
        stream.write(line)
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("who_ends", ["peer", "server"])
def test_the_end_reaches_the_peer_and_no_event_another_connection(tmp_path: Path, loop: str, who_ends: str) -> None:
    service = SERVICE if who_ends == "peer" else f"{SERVICE}        if line == b'end\\n':\n            return\n"
    (tmp_path / "service.py").write_text(service)
    with serving(tmp_path, "--loop", loop, workers=1) as server, contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))

        def ask(sock: socket.socket, line: bytes) -> None:
            sock.sendall(line)
            assert sock.recv(100) == line

        first = connect()
        ask(first, b"fork\n")
        if who_ends == "peer":
            first.shutdown(socket.SHUT_WR)
        else:
            ask(first, b"end\n")
        assert first.recv(100) == b"", "the child has not said the end, and will not for a minute"
        # Its number is used again; the child has the old one, which still gets what its peer sends.
        others = [connect() for _ in range(3)]
        for number in range(50):
            if who_ends == "server":
                first.send(b"is anybody there?\n")
            for other in others:
                ask(other, b"%d\n" % number)
