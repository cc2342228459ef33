"""Children that a handler starts: one holds the sockets of all connections, one has a connection as its standard input
and makes it block. No other connection notices either."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from helpers.servers import serving

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


BLOCKING = """
import asyncio, fcntl, os, sys

CHILD = "import os; os.set_blocking(0, True)"

async def handle(stream):
    async for line in stream:
        if line == b"child\\n":
            sock = stream.get_extra_info("socket")
            child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", CHILD, stdin=sock)
            await child.wait()
            assert not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK
            stream.write(line)
        elif line == b"send\\n":
            stream.write(bytes(4 * 2**20))
        elif line == b"end\\n":
            stream.write(line)
            return
        else:
            stream.write(line)
"""


@pytest.mark.parametrize("what", ["receive", "send", "end"])
def test_a_child_that_makes_a_connection_block_stops_no_other(tmp_path: Path, what: str) -> None:
    """Its O_NONBLOCK is that of the open file description, which both have."""
    (tmp_path / "service.py").write_text(BLOCKING)
    # A unix socket is read until it says that there is no more.
    path = str(tmp_path / "socket")
    with serving(tmp_path, workers=1, bind=[f"unix:{path}"]), contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(10)
            sock.connect(path)
            return sock

        def ask(sock: socket.socket, line: bytes) -> None:
            sock.sendall(line)
            assert sock.recv(100) == line

        other, first = connect(), connect()
        ask(other, b"before\n")
        ask(first, b"child\n")
        if what == "end":
            ask(first, b"end\n")
        elif what == "send":
            first.sendall(b"send\n")
        for number in range(5):
            ask(other, b"%d\n" % number)
        if what == "send":
            left = 4 * 2**20
            while left:
                left -= len(first.recv(65536))
