"""prefork with its own kind of handler, `async def handle(stream)`: one process, `TCPServer` in a script."""

from __future__ import annotations

import prefork

from .common import CHUNK, announce, listener, options, run


async def echo(stream: prefork.Stream) -> None:
    while data := await stream.read(CHUNK):
        stream.write(data)


async def lines(stream: prefork.Stream) -> None:
    """Line by line. Memory is bounded without a drain: reads wait for a peer that does not take its answers."""
    async for line in stream:
        stream.write(line)


async def main() -> None:
    given = options()
    tls = prefork.TLS(*given.tls) if given.tls else None
    async with prefork.TCPServer(lines if given.work == "lines" else echo, tls=tls) as server:
        sock = listener()
        server.add_socket(sock)
        announce(sock)
        await server.serve_forever()


if __name__ == "__main__":
    run(main(), options().loop)
