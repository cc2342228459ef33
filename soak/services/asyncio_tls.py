"""An echo server of asyncio's streams with TLS, for comparison: `python -m soak.services.asyncio_tls CERT KEY` prints
its port."""

from __future__ import annotations

import asyncio
import ssl
import sys


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def main(cert: str, key: str) -> None:
    """Serve until it is told to end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(_handle, "127.0.0.1", 0, ssl=context)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Floods end without a word, of which asyncio tells each time.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
