"""`stream.transport`: the asyncio transport that handlers written for asyncio's streams expect to find.

A view of a stream, without state. What would bypass the stream's reading (pausing it, another protocol) is not offered
and raises NotImplementedError, as `asyncio.Transport` does for what a transport lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stream import Stream


class StreamTransport(asyncio.Transport):
    """The transport of `stream`; made when asked for."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def abort(self) -> None:
        """Close at once; unsent bytes are lost."""
        self._stream.abort()

    def close(self) -> None:
        self._stream.close()

    def is_closing(self) -> bool:
        return self._stream.is_closing()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._stream.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self._stream.writelines(list_of_data)

    def write_eof(self) -> None:
        self._stream.write_eof()

    def can_write_eof(self) -> bool:
        return self._stream.can_write_eof()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._stream.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes written and not yet taken by the kernel."""
        return self._stream.unsent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """(low, high): `drain()` waits above high, until low."""
        high = self._stream.drain_above
        return high // 4, high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much may be unsent before `drain()` waits; None: the default. `low` is always a quarter of `high`."""
        self._stream.drain_above = high if high is not None else 4 * low if low is not None else None
