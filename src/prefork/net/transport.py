"""`stream.transport`: the asyncio transport that handlers written for asyncio's streams expect.

A view of a stream. Its state is what the handler has set: whether reading is paused, and another protocol. What feeds
that protocol is in replaced_protocol.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .cpython import SENDFILE_FALLBACK, SendfileTransport
from .replaced_protocol import ProtocolFeed

_Bytes = bytes | bytearray | memoryview


class TransportStream(Protocol):
    """The part of a stream that its transport needs."""

    _on_closed: Callable[[], None] | None

    def abort(self) -> None: ...
    def close(self) -> None: ...
    def is_closing(self) -> bool: ...
    def exception(self) -> BaseException | None: ...
    async def read(self, n: int = -1) -> bytes: ...
    def write(self, data: _Bytes) -> None: ...
    def writelines(self, chunks: Iterable[_Bytes]) -> None: ...
    def write_eof(self) -> None: ...
    def can_write_eof(self) -> bool: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    @property
    def unsent(self) -> int: ...
    def _is_reading(self) -> bool: ...
    def _pause_input(self) -> None: ...
    def _resume_input(self) -> None: ...
    def _water_marks(self) -> tuple[int, int]: ...
    def _set_water_marks(self, high: int | None, low: int | None) -> None: ...


class StreamProtocol(asyncio.Protocol):
    """The protocol of a transport whose input the stream itself takes: `set_protocol` with it gives the input back."""


class StreamTransport(SendfileTransport):
    """The transport of `stream`, made when it is asked for."""

    # `loop.sendfile` uses `_loop` and `_protocol_paused`.
    __slots__ = (
        "__weakref__",
        "_feed",
        "_loop",
        "_paused",
        "_protocol",
        "_protocol_paused",
        "_stream",
        "_stream_protocol",
    )

    _sendfile_compatible = SENDFILE_FALLBACK
    """`loop.sendfile` reads the file and calls `write`, as it does over TLS."""

    def __init__(self, stream: TransportStream, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.Transport.__init__(self)
        self._stream = stream
        self._loop = loop
        self._paused = False
        self._protocol_paused = False
        self._protocol: asyncio.BaseProtocol = StreamProtocol()
        self._stream_protocol = self._protocol
        self._feed: ProtocolFeed | None = None
        """Made when the protocol is replaced for the first time."""

    def __repr__(self) -> str:
        return f"<StreamTransport {self._stream!r}>"

    # --- the end, and writing -----------------------------------------------------------------------------------------

    def abort(self) -> None:
        self._stream.abort()

    def close(self) -> None:
        self._stream.close()

    def is_closing(self) -> bool:
        return self._stream.is_closing()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._stream.write(data)
        self.control_flow()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        self._stream.writelines(list_of_data)
        self.control_flow()

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
        self.control_flow()

    def control_flow(self) -> None:
        """Pause the protocol above the high water mark, and resume it at the low one. Never raises what it raises."""
        low, high = self._stream._water_marks()
        unsent = self._stream.unsent
        if self._protocol_paused == (unsent > (low if self._protocol_paused else high)):
            return
        self._protocol_paused = not self._protocol_paused
        try:
            if self._protocol_paused:
                self._protocol.pause_writing()
            else:
                self._protocol.resume_writing()
        except Exception as exc:
            # The caller is the stream, which serves other protocols after this one.
            what = "pause_writing" if self._protocol_paused else "resume_writing"
            context = {"message": f"protocol.{what}() failed", "exception": exc, "transport": self}
            self._loop.call_exception_handler({**context, "protocol": self._protocol})

    # --- reading ------------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def pause_reading(self) -> None:
        """Receive nothing until `resume_reading`: reads return what is buffered, and then wait."""
        if self.is_reading():
            self._paused = True
            self._stream._pause_input()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._stream._resume_input()
            self._start_feed()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the input to `protocol` from now on; with the first protocol again, to the readers of the stream.

        After the handler the connection stays open until the protocol closes it. Raises StreamBusyError if a task waits
        for input from the stream and reading is not paused.
        """
        self._protocol = protocol
        if self._feed is not None:
            self._feed.stop()
        self._start_feed()

    def is_replaced(self) -> bool:
        """Return whether the input goes to a protocol that the handler has set."""
        return self._protocol is not self._stream_protocol

    def _start_feed(self) -> None:
        if self._paused or not self.is_replaced():
            return
        if self._feed is None:
            self._feed = ProtocolFeed(self, self._stream, self._loop)
        self._feed.start(self._protocol)
