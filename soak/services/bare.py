"""A service that imports nothing: what a replacement costs beyond it is prefork's own."""

from __future__ import annotations

import os
import time

from prefork import Stream


class Service:
    """Answers each line with its pid and the moment at which it was started."""

    async def start(self) -> None:
        self._answer = b"%d %d\n" % (os.getpid(), time.monotonic_ns())

    async def handle(self, stream: Stream) -> None:
        async for _ in stream:
            stream.write(self._answer)

    async def stop(self) -> None:
        pass


service = Service()
