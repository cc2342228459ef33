"""`stream.transport`: the asyncio transport that handlers written for asyncio's streams expect.

A view without state. What would bypass the stream's reading (pausing it, another protocol) is not offered and raises
NotImplementedError, as `asyncio.Transport` does for an operation that a transport lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

_Bytes = bytes | bytearray | memoryview


class TransportStream(Protocol):
    """The part of a stream that its transport needs."""

    def abort(self) -> None: ...
    def close(self) -> None: ...
    def is_closing(self) -> bool: ...
    def write(self, data: _Bytes) -> None: ...
    def writelines(self, chunks: Iterable[_Bytes]) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    @property
    def unsent(self) -> int: ...
    def _water_marks(self) -> tuple[int, int]: ...
    def _set_water_marks(self, high: int | None, low: int | None) -> None: ...


class StreamTransport(asyncio.Transport):
    """The transport of `stream`, made when it is asked for."""

    __slots__ = ("_stream",)

    def __init__(self, stream: TransportStream) -> None:
        super().__init__()
        self._stream = stream

    def abort(self) -> None:
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
        return self._stream.unsent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._stream._water_marks()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the water marks as asyncio does: `high` defaults to 4 * `low` or to `Limits.drain_above`, `low` to
        25 % of `high`. Raises ValueError unless high >= low >= 0."""
        self._stream._set_water_marks(high, low)
