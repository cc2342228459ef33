"""The service of the hosts: answers frames, and says in each answer which host this is and which peer it sees."""

from __future__ import annotations

import asyncio
import os

from prefork import Stream
from soak.payload import HEAD, answer, missing
from soak.tally import Tally, Word

from .mark import Mark, pack

#: The variable of the environment with the host's number.
HOST = "CLUSTER_HOST"


class Service:
    """A lifespan object: the tally is made in each worker."""

    async def start(self) -> None:
        self._words = Tally().words
        self._host = int(os.environ[HOST])

    async def handle(self, stream: Stream) -> None:
        """Answer frame after frame until the peer ends."""
        words = self._words
        words[Word.HANDLED] += 1
        try:
            address, _, port = stream.peer.rpartition(":")
            number = pack(Mark(self._host, address, int(port)))
            while head := await _head(stream):
                body = await stream.readexactly(missing(head))
                stream.write(answer(head, body, number))
                words[Word.EXCHANGES] += 1
        except BaseException:
            words[Word.BROKEN] += 1
            raise
        words[Word.ENDED] += 1

    async def stop(self) -> None:
        pass


async def _head(stream: Stream) -> bytes:
    """Return the head of the next frame, or b"" if the peer has ended."""
    try:
        return await stream.readexactly(HEAD.size)
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return b""


service = Service()
