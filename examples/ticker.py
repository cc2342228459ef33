"""A program with a main of its own, for `prefork run`: every worker answers, and one of them ticks.

    prefork run ticker.py 9000
    nc localhost 9000

Each line is answered with the number of ticks. The lease has one worker count them, one per second, through reloads and
deaths of workers. The count is in a file, because memory is per worker. `python ticker.py 9000` runs it without
workers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import prefork

COUNT = Path("ticks.txt")


async def tick() -> None:
    """Count one tick per second, in one worker of all."""
    async with prefork.lease("tick"):
        while True:
            new = COUNT.with_suffix(".new")
            new.write_text(str(ticks() + 1))
            # At once, so that no worker reads a part of it.
            new.replace(COUNT)
            await asyncio.sleep(1)


def ticks() -> int:
    return int(COUNT.read_text()) if COUNT.exists() else 0


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    worker = os.environ.get("PREFORK_WORKER_ID", "-")
    async for _ in reader:
        writer.write(f"{ticks()} ticks, says worker {worker}\n".encode())
        await writer.drain()
    writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(answer, port=port)
    async with asyncio.TaskGroup() as group:
        group.create_task(tick())
        group.create_task(server.serve_forever())


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
