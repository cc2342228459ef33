"""Tornado: `TCPServer` and `IOStream`, as in its documentation of `tornado.tcpserver`."""

from __future__ import annotations

import asyncio
import contextlib

from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpserver import TCPServer

from .common import CHUNK, announce, listener, options


class Echo(TCPServer):
    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        with contextlib.suppress(StreamClosedError):
            while True:
                data = await stream.read_bytes(CHUNK, partial=True)
                await stream.write(data)


class Lines(TCPServer):
    async def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        with contextlib.suppress(StreamClosedError):
            while True:
                data = await stream.read_until(b"\n")
                await stream.write(data)


async def main() -> None:
    given = options()
    kind = Lines if given.work == "lines" else Echo
    server = kind(ssl_options=given.context)
    sock = listener()
    server.add_sockets([sock])
    announce(sock)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
