"""The echo with check, as an asyncio protocol."""

from __future__ import annotations

import asyncio
import os

from soak.payload import HEAD, answer, missing


class Echo(asyncio.Protocol):
    """Frame after frame, until the peer says its end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._heard = bytearray()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while len(self._heard) >= HEAD.size and (more := missing(self._heard)) <= 0:
            end = len(self._heard) + more
            frame, self._heard = bytes(self._heard[:end]), self._heard[end:]
            self._transport.write(answer(frame[: HEAD.size], frame[HEAD.size :], os.getpid()))
