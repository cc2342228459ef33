"""trio's `serve_tcp`, line by line: HOST PORT."""

import os
import sys

import trio


async def answer(stream):
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            await stream.send_all(line + f" {os.getpid()}\n".encode())


async def main():
    await trio.serve_tcp(answer, int(sys.argv[2]), host=sys.argv[1])


if __name__ == "__main__":
    trio.run(main)
