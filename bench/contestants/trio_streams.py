"""Trio: `serve_listeners` and its streams, as in its tutorial's echo server."""

from __future__ import annotations

import contextlib
from typing import Any

import trio

from .common import LONGEST_LINE, announce, listener, options


async def echo(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def lines(stream: trio.abc.Stream) -> None:
    """Line by line. Trio has no lines of its own; its users cut them out of what was received."""
    rest = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async for data in stream:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                await stream.send_all(line + b"\n")
            if len(rest) > LONGEST_LINE:
                return


async def main() -> None:
    given = options()
    sock = listener()
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    context = given.context
    listening: Any = plain if context is None else trio.SSLListener(plain, context)
    announce(sock)
    await trio.serve_listeners(lines if given.work == "lines" else echo, [listening])


if __name__ == "__main__":
    trio.run(main)
