"""Chat rooms: several connections that talk to each other.

    prefork serve chat:handle --bind :9000 --workers 1
    nc localhost 9000

The first line is your name and a room, `ann kitchen`; every further line goes to everybody in the room. The rooms are
those of one worker, as memory is: with more workers each has rooms of its own, which is why it says `--workers 1`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from prefork import Stream

#: A guest whose peer does not read gets this much behind and is then shown the door: one slow reader must not cost the
#: others memory or time.
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
    """To everybody in the room. Nobody is waited for: `write` never does."""
    for guest in list(rooms[room]):
        if guest.unsent > MAX_UNSENT:
            guest.abort()
        else:
            guest.write(text.encode() + b"\n")


async def say_goodbye(stream: Stream) -> None:
    """When the worker wants to stop, end the conversation politely."""
    await stream.wait_draining()
    stream.write(b"* the server is going down, goodbye\n")
    stream.close()
