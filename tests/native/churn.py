"""Open and close connections to a server in this process, in every way, and print how many blocks of memory are left.

A program of its own: `python churn.py COUNT` prints the number of allocated blocks after each tenth of COUNT.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import sys

from helpers.streams import client_context, server_context

from prefork import Limits, Stream, TCPServer
from prefork.errors import LineTooLongError

RESET = struct.pack("ii", 1, 0)


async def handle(stream: Stream) -> None:
    """Serve one line in the way that it names."""
    match (await stream.readline()).strip():
        case b"echo":
            stream.write(await stream.readexactly(4))
        case b"lines":
            async for line in stream:
                stream.write(line)
        case b"flood":
            for _ in range(64):
                stream.write(b"x" * 65536)
            await stream.drain()
        case b"cancel":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await stream.read(10)
            await stream.send(b"cancelled")
        case b"long":
            with contextlib.suppress(LineTooLongError):
                await stream.readline()
        case b"forget":
            stream.timeouts.idle = 10.0
            task = asyncio.ensure_future(stream.read(1))
            await asyncio.sleep(0)
            task.cancel()
        case b"raise":
            raise ConnectionError("on purpose")
    stream.write(b"bye")


async def client(port: int, kind: str) -> None:
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    with sock, contextlib.suppress(ConnectionError):
        await loop.sock_connect(sock, ("127.0.0.1", port))
        if kind == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            await loop.sock_sendall(sock, b"echo\n12")
            return
        tail = {"echo": b"1234", "lines": b"a\nb\nc", "long": b"x" * 5000}.get(kind, b"")
        await loop.sock_sendall(sock, kind.encode() + b"\n" + tail)
        if kind == "flood":
            await loop.sock_recv(sock, 1000)
            return
        sock.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(sock, 65536):
            pass


async def tls_client(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(), server_hostname="localhost")
    writer.write(b"echo\n1234")
    await reader.readexactly(7)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


KINDS = ("echo", "lines", "flood", "cancel", "long", "forget", "raise", "reset", "silent")


async def main(count: int) -> None:
    limits = Limits(read_limit=1000, linger_timeout=0.1)
    secured = TCPServer(handle, limits=limits, tls=server_context())
    async with TCPServer(handle, limits=limits) as server, secured:
        server.listen(0, "127.0.0.1")
        secured.listen(0, "127.0.0.1")
        port, tls_port = (each.sockets[0].getsockname()[1] for each in (server, secured))
        for tenth in range(10):
            for _ in range(count // 10 // 20):
                clients = [client(port, KINDS[number % len(KINDS)]) for number in range(18)]
                await asyncio.gather(*clients, tls_client(tls_port), tls_client(tls_port))
            while server.connections or secured.connections:
                await asyncio.sleep(0.01)
            gc.collect()
            print(tenth, sys.getallocatedblocks(), flush=True)


if __name__ == "__main__":
    import logging

    logging.getLogger("prefork").setLevel(logging.CRITICAL)
    asyncio.run(main(int(sys.argv[1])))
