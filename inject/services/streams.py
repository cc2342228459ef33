"""The echo with check, as a stream handler."""

from __future__ import annotations

import asyncio
import os

from prefork import Stream
from soak.payload import HEAD, answer, missing


async def handle(stream: Stream) -> None:
    """Frame after frame, until the peer says its end."""
    while True:
        try:
            head = await stream.readexactly(HEAD.size)
        except asyncio.IncompleteReadError as exc:
            if exc.partial:
                raise
            return
        stream.write(answer(head, await stream.readexactly(missing(head)), os.getpid()))
        await stream.drain()
