"""asyncio's own `start_server`, line by line: HOST PORT."""

import asyncio
import os
import sys


async def answer(reader, writer):
    async for line in reader:
        writer.write(line.rstrip(b"\n") + f" {os.getpid()}\n".encode())
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(answer, sys.argv[1], int(sys.argv[2]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
