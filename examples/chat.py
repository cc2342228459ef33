"""Chat rooms: several connections that talk to each other.

    prefork serve chat:handle --bind :9000 --workers 1
    nc localhost 9000

The first line is your name and a room, `ann kitchen`. Every further line goes to all guests of the room. Memory is per
worker, so each worker would have rooms of its own: hence `--workers 1`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from prefork import Stream

#: Unsent bytes above which a guest that does not read is disconnected, because a slow reader must not cost the others
#: memory or time.
MAX_UNSENT = 256 * 1024

rooms: defaultdict[str, set[Stream]] = defaultdict(set)


async def handle(stream: Stream) -> None:
    stream.write(b"who are you, and which room?\n")
    words = (await stream.readline()).decode(errors="replace").split()
    if len(words) != 2:
        stream.write(b"name and room, please\n")
        return
    name, room = words
    guests = rooms[room]
    guests.add(stream)
    say(room, f"* {name} came in ({len(guests)} here)")
    farewell = asyncio.create_task(say_goodbye(stream))
    try:
        async for line in stream:
            say(room, f"{name}: {line.decode(errors='replace').rstrip()}")
    finally:
        farewell.cancel()
        guests.discard(stream)
        if guests:
            say(room, f"* {name} left")
        else:
            del rooms[room]


def say(room: str, text: str) -> None:
    """Send `text` to all guests of the room. `write` never waits, so a slow guest does not delay the others."""
    for guest in list(rooms[room]):
        if guest.unsent > MAX_UNSENT:
            guest.abort()
        else:
            guest.write(text.encode() + b"\n")


async def say_goodbye(stream: Stream) -> None:
    """Wait until the worker is about to stop, and then end the conversation politely."""
    await stream.wait_draining()
    stream.write(b"* the server is going down, goodbye\n")
    stream.close()
