"""A service that answers with its PID, and works, blocks or floods on request."""

from __future__ import annotations

import os
import time

from prefork import Stream

_PID = b"%d\n" % os.getpid()


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _stand_still(seconds: float) -> None:
    time.sleep(seconds)


async def handle(stream: Stream) -> None:
    """Answer each line.

    `who` gets the worker's PID; `work S` the same, after S seconds of CPU time; `block S` the same, and then the loop
    blocks for S seconds; `flood N` N pieces of 64 KiB, without `drain()`. Any other line is echoed.
    """
    letter = b"x"
    async for line in stream:
        word, *rest = line.split()
        if word == b"who":
            stream.write(_PID)
        elif word == b"work":
            _spin(float(rest[0]))
            stream.write(_PID)
        elif word == b"block":
            await stream.send(_PID)
            _stand_still(float(rest[0]))
        elif word == b"flood":
            for _ in range(int(rest[0])):
                # A new one each time, and no zeroes: of those the kernel has one page for all.
                stream.write(letter * 65536)
        else:
            stream.write(line)
