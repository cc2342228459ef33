"""A service that says who answers, and can be told to be busy, blocked, or lavish."""

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
    """`who`: the worker's pid; `work S`: the same, after so much processor time; `block S`: the same, and then the loop
    stands still; `flood N`: so many pieces of 64 KiB, without waiting for room. Anything else is echoed."""
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
