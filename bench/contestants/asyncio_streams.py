"""asyncio's streams, on asyncio's own loop or on uvloop."""

from __future__ import annotations

import asyncio

from . import handlers
from .common import announce, listener, options, run


async def main() -> None:
    given = options()
    sock = listener()
    handle = handlers.lines if given.work == "lines" else handlers.echo
    # A copy, because rloop takes the descriptor out of the object that it is given.
    server = await asyncio.start_server(handle, sock=sock.dup(), ssl=given.context)
    announce(sock)
    async with server:
        # Not `serve_forever`, in which rloop 0.5 accepts nothing. The server accepts since it was made.
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(main(), options().loop)
