"""The handlers for asyncio's streams: the same functions serve asyncio, uvloop and, unchanged, prefork."""

from __future__ import annotations

import contextlib
from asyncio import StreamReader, StreamWriter

from .common import CHUNK


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    # Otherwise asyncio logs a traceback for each reset, which costs more than the connection.
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()


async def lines(reader: StreamReader, writer: StreamWriter) -> None:
    """Line by line; `drain` after each write, as the documentation asks, bounds what is held for a slow peer."""
    async for line in reader:
        writer.write(line)
        await writer.drain()
    writer.close()
    await writer.wait_closed()
