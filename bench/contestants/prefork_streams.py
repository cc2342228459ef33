"""prefork with a handler that was written for `asyncio.start_server`, unchanged: `async def handle(reader, writer)`."""

from __future__ import annotations

import prefork

from . import handlers
from .common import announce, listener, options, run


async def main() -> None:
    given = options()
    tls = prefork.TLS(*given.tls) if given.tls else None
    handle = handlers.lines if given.work == "lines" else handlers.echo
    async with prefork.TCPServer(handle, tls=tls) as server:
        sock = listener()
        server.add_socket(sock)
        announce(sock)
        await server.serve_forever()


if __name__ == "__main__":
    run(main(), options().loop)
