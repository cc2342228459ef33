"""An asyncio protocol, on asyncio's own loop or on uvloop.

Echoing, reading pauses while the transport is full: without it one peer that does not read could fill the memory, and
every other contestant is bounded as well. Line by line, each line is answered by a write of its own, as a handler of
single requests does; with `--joined` the answers to what came in one piece are joined by hand and written at once.
"""

from __future__ import annotations

import asyncio
import sys

from .common import LONGEST_LINE, announce, listener, options, run


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports are no subclass of asyncio's.
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]  # asyncio's signature says less

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Lines(Echo):
    rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.transport.write(line + b"\n")
        if len(self.rest) > LONGEST_LINE:
            self.transport.abort()


class JoinedLines(Lines):
    """Line by line, with one write for all that came at once."""

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        answers = [line + b"\n" for line in lines]
        if answers:
            self.transport.write(b"".join(answers))
        if len(self.rest) > LONGEST_LINE:
            self.transport.abort()


async def main(joined: bool) -> None:
    given = options()
    sock = listener()
    protocol = Echo if given.work == "echo" else JoinedLines if joined else Lines
    # A copy, because rloop takes the descriptor out of the object that it is given.
    server = await asyncio.get_running_loop().create_server(protocol, sock=sock.dup(), ssl=given.context)
    announce(sock)
    async with server:
        # Not `serve_forever`, in which rloop 0.5 accepts nothing. The server accepts since it was made.
        await asyncio.Event().wait()


if __name__ == "__main__":
    by_hand = "--joined" in sys.argv
    if by_hand:
        sys.argv.remove("--joined")
    run(main(by_hand), options().loop)
