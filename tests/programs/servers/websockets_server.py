"""websockets, as its documentation starts it: HOST PORT."""

import asyncio
import os
import sys

from websockets.asyncio.server import serve


async def answer(websocket):
    async for message in websocket:
        await websocket.send(f"{message} {os.getpid()}")


async def main():
    async with serve(answer, sys.argv[1], int(sys.argv[2])) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
