"""System calls that do less than they were asked for, or are interrupted: no byte is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import subprocess
import sys
import textwrap

import pytest
from helpers.streams import FLAVOURS, World, eventually
from helpers.support import kill_session, need


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "tcp")


@pytest.mark.slow
async def test_bytes_survive_tiny_kernel_buffers_and_random_pieces(world: World) -> None:
    """Every send is short and every read cuts somewhere else."""
    async with world.raw() as (stream, sock):
        for each in (stream.get_extra_info("socket"), sock):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        dice = random.Random(7)
        data = dice.randbytes(60_000)

        async def handler() -> None:
            while chunk := await stream.read(dice.randrange(1, 30_000)):
                for at in range(0, len(chunk), 7000):
                    stream.write(chunk[at : at + 7000])
                if dice.random() < 0.5:
                    await stream.drain()
            stream.close()

        async def send() -> None:
            at = 0
            while at < len(data):
                size = dice.randrange(1, 9000)
                await loop.sock_sendall(sock, data[at : at + size])
                at += size
            sock.shutdown(socket.SHUT_WR)

        received = bytearray()

        async def receive() -> None:
            while chunk := await loop.sock_recv(sock, dice.randrange(1, 20_000)):
                received.extend(chunk)

        async with asyncio.TaskGroup() as group:
            for coroutine in (handler(), send(), receive()):
                group.create_task(coroutine)
        assert bytes(received) == data
        await eventually(stream.is_closing)


SERVER = """
import asyncio, prefork, signal, sys

async def handle(stream):
    while data := await stream.read(5000):
        stream.write(data)

async def main():
    async with prefork.TCPServer(handle) as server:
        server.listen(0, "127.0.0.1")
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


def test_interrupted_system_calls_are_retried() -> None:
    need("strace")
    command = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=recvfrom,sendto"]
    command += ["-e", "inject=recvfrom,sendto:error=EINTR:when=3+3", sys.executable, "-c", textwrap.dedent(SERVER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            data = random.Random(3).randbytes(400_000)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
                received = bytearray()
                for at in range(0, len(data), 10_000):
                    sock.sendall(data[at : at + 10_000])
                    while len(received) < at + 10_000:
                        chunk = sock.recv(65536)
                        assert chunk, "the server ended the connection"
                        received += chunk
                assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
        finally:
            # strace, and the server under it.
            kill_session(server.pid)
