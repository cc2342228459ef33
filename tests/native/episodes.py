"""Random reads of one stream, whose results depend on the bytes and not on when they come. Prints a line an episode.

A program of its own: `python episodes.py SEED COUNT` prints the same whichever core streams have.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

from prefork import Limits, Stream
from prefork.errors import LineTooLongError
from prefork.net.server_state import ServerState

SEPARATORS = [b"\n", b"\r\n", b"--", (b"\n", b"--"), (b"abc", b"c", b"\0")]


def payload(dice: random.Random, size: int) -> bytes:
    alphabet = dice.choice([b"\n\r-abc\0", b"abcdefgh" * 40 + b"\n", b"x" * 5000 + b"\r\n"])
    return bytes(dice.choices(alphabet, k=size))


async def read_total(stream: Stream, total: int, chunk: int) -> bytes:
    received = b""
    while len(received) < total and (data := await stream.read(min(chunk, total - len(received)))):
        received += data
    return received


async def next_line(stream: Stream) -> bytes:
    return await anext(stream)


async def cancelled(stream: Stream, size: int) -> bytes:
    """A read that is cancelled loses no byte, whether it was waiting or not."""
    task = asyncio.ensure_future(stream.readexactly(size))
    await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return await stream.readexactly(size)


def operation(dice: random.Random, stream: Stream) -> tuple[str, Any]:
    size = dice.choice([0, 1, 2, 7, 100, 5000, 70_000])
    choices: list[tuple[str, Callable[[], Any]]] = [
        ("read", lambda: read_total(stream, size, dice.choice([1, 10, 70_000]))),
        ("readexactly", lambda: stream.readexactly(size)),
        ("readline", stream.readline),
        ("next", lambda: next_line(stream)),
        ("cancelled", lambda: cancelled(stream, size)),
        ("paused", lambda: paused(stream, size)),
    ]
    separator = dice.choice(SEPARATORS)
    choices.append((f"readuntil {separator!r}", lambda: stream.readuntil(separator)))
    name, call = dice.choice(choices)
    return f"{name} {size}", call()


async def feed(dice: random.Random, sock: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    while data:
        size = dice.choice([1, 3, 100, 3000, 100_000])
        await loop.sock_sendall(sock, data[:size])
        data = data[size:]
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    sock.shutdown(socket.SHUT_WR)


async def has_ended(stream: Stream) -> bool:
    """Wait until there is a byte to read or the end of input."""
    while not stream.at_eof() and not stream._buffered:
        await asyncio.sleep(0)
    return stream.at_eof()


async def paused(stream: Stream, size: int) -> bytes:
    """A read that is paused while it waits loses no byte."""
    task = asyncio.ensure_future(stream.readexactly(size))
    stream.transport.pause_reading()
    await asyncio.sleep(0)
    stream.transport.resume_reading()
    return await task


async def outcome(call: Any) -> str:
    try:
        return repr(await call)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, LineTooLongError, StopAsyncIteration) as exc:
        return f"{type(exc).__name__} {exc} {getattr(exc, 'partial', b'')!r}"


async def episode(seed: int) -> str:
    dice = random.Random(seed)
    whole = dice.random() < 0.5
    # What is too long for a line is discarded as far as it came, so all of it must be there at once.
    limits = Limits(read_limit=dice.choice([10, 1000])) if whole else Limits(read_limit=1 << 30)
    data = payload(dice, dice.randrange(0, 20_000 if whole else 200_000))
    digest = hashlib.sha256()
    state = ServerState(asyncio.get_running_loop(), limits, lambda event: None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    stream = Stream(ours, "", state)
    writing = asyncio.ensure_future(feed(random.Random(seed + 1), theirs, data))
    if whole:
        await writing
    count = 0
    try:
        async with asyncio.timeout(60):
            while not await has_ended(stream) and count < 2000:
                name, call = operation(dice, stream)
                digest.update(f"{name}: {await outcome(call)}\n".encode())
                count += 1
        await writing
    finally:
        writing.cancel()
        stream.abort()
        theirs.close()
        state.close()
    return f"{seed} {count} {digest.hexdigest()[:16]}"


async def main(seed: int, count: int) -> None:
    for number in range(count):
        print(await episode(seed * 1_000_003 + number))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
