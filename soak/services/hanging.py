"""A service that hangs in the way that it is told to, and notes when it began to."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

from prefork import Stream

from ..tally import Tally, Word


def _sleep() -> None:
    time.sleep(600)


def _spin() -> None:
    while True:
        pass


def _hold_the_interpreter() -> None:
    # A C function that does not give the interpreter's lock away: no other thread of Python runs either.
    ctypes.PyDLL(None).sleep(600)


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


WAYS: dict[bytes, Callable[[], None]] = {
    b"sleep": _sleep,
    b"spin": _spin,
    b"hold": _hold_the_interpreter,
    b"lock": _deadlock,
}


class Service:
    """Each line is a way to hang; any other is echoed."""

    async def start(self) -> None:
        self._words = Tally().words

    async def handle(self, stream: Stream) -> None:
        async for line in stream:
            hang = WAYS.get(line.strip())
            if hang is not None:
                self._words[Word.MARK] = time.monotonic_ns()
                hang()
            stream.write(line)

    async def stop(self) -> None:
        pass


service = Service()
