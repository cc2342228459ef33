"""The echo service of most scenarios: answers frames, checks them, and counts in shared files what it did."""

from __future__ import annotations

import asyncio
import os

from prefork import Stream

from ..payload import HEAD, answer, missing
from ..tally import Tally, Word


class Service:
    """A lifespan object: the tally is made in each worker."""

    async def start(self) -> None:
        self._words = Tally().words
        self._pid = os.getpid()

    def number(self, stream: Stream) -> int:
        """Return the number that each answer to this peer carries: here, that of the process."""
        return self._pid

    async def handle(self, stream: Stream) -> None:
        """Answer frame after frame until the peer ends."""
        words = self._words
        words[Word.HANDLED] += 1
        try:
            number = self.number(stream)
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
    """The head of the next frame; b"" if the peer has ended."""
    try:
        return await stream.readexactly(HEAD.size)
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise
        return b""


service = Service()
