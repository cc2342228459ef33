"""`ProtocolFeed`: feeds an asyncio protocol from a stream whose handler has replaced the protocol of its transport.

Which protocol is fed, and when, is decided in transport.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import StreamBusyError

#: Bytes of one read for a protocol: what asyncio's transports receive at once.
_PIECE = 256 * 1024


class FeedingStream(Protocol):
    """The part of a stream that feeding needs."""

    _on_closed: Callable[[], None] | None

    def abort(self) -> None: ...
    def close(self) -> None: ...
    def exception(self) -> BaseException | None: ...
    async def read(self, n: int = -1) -> bytes: ...
    def _is_reading(self) -> bool: ...


class ProtocolFeed:
    """The task that reads for a protocol, and the report of the connection's end."""

    def __init__(self, transport: asyncio.Transport, stream: FeedingStream, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._stream = stream
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._on_closed = stream._on_closed
        stream._on_closed = self._closed

    def start(self, protocol: asyncio.BaseProtocol) -> None:
        """Read for `protocol` from now on. Raises StreamBusyError if another task waits for input."""
        if self._task is not None and not self._task.done():
            return
        if self._stream._is_reading():
            raise StreamBusyError("the protocol was replaced while a coroutine is waiting for incoming data")
        self._task = self._loop.create_task(self._run(protocol))

    def stop(self) -> None:
        """Read no more. What has arrived and was not delivered is for the next reader."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self, protocol: Any) -> None:
        try:
            while self._transport.is_reading():
                data = await self._stream.read(_PIECE)
                if data:
                    _deliver(protocol, data)
                elif self._transport.is_closing() or not protocol.eof_received():
                    self._stream.close()
                    return
                else:
                    return
        except OSError:
            # The connection is lost, which `_closed` reports.
            self._stream.abort()
        except Exception as exc:
            context = {"message": "Fatal error: protocol call failed.", "exception": exc, "protocol": protocol}
            self._loop.call_exception_handler({**context, "transport": self._transport})
            self._stream.abort()

    def _closed(self) -> None:
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed()
        protocol: Any = self._transport.get_protocol()
        self._loop.call_soon(protocol.connection_lost, self._stream.exception())


def _deliver(protocol: Any, data: bytes) -> None:
    """Give `data` to a Protocol, or piece by piece to a BufferedProtocol."""
    if not isinstance(protocol, asyncio.BufferedProtocol):
        protocol.data_received(data)
        return
    rest = memoryview(data)
    while rest:
        buffer = memoryview(protocol.get_buffer(len(rest)))
        if not len(buffer):
            raise RuntimeError("get_buffer() returned an empty buffer")
        size = min(len(buffer), len(rest))
        buffer[:size] = rest[:size]
        protocol.buffer_updated(size)
        rest = rest[size:]
