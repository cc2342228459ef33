"""Notice the first byte that a protocol receives, where the kernel cannot tell: with TLS, and on a unix socket.

Of a TLS peer the kernel counts the handshake too, and the first data may come with its last bytes. A stand-in for the
protocol costs one more call, for the first data only. What follows from it is decided in protocol_timeouts.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class _StandIn:
    """The protocol of a transport until its first data or its end of file, which it passes on to the service's own.

    Its other attributes are those of the service's own, because `transport.get_protocol()` returns it meanwhile.
    """

    def __init__(self, transport: Any, protocol: Any, arrived: Callable[[], None]) -> None:
        self._transport = transport
        self._protocol = protocol
        self._arrived = arrived

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    def _leave(self) -> Any:
        """Give the transport its own protocol back, and return that one."""
        self._transport.set_protocol(self._protocol)
        self._arrived()
        return self._protocol

    def eof_received(self) -> Any:
        return self._leave().eof_received()

    # asyncio's base classes have these, so they do not reach `__getattr__`.

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()


class _StreamingStandIn(_StandIn, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self._leave().data_received(data)


class _BufferedStandIn(_StandIn, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> Any:
        # Called also when there is nothing to read.
        return self._protocol.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._leave().buffer_updated(nbytes)


def watch_first_byte(transport: Any, arrived: Callable[[], None]) -> Callable[[], bool]:
    """Have `arrived` called once, just before the protocol of `transport` gets its first data or its end of file.

    Return a function that tells whether the watch is still in place: the service may give the transport another
    protocol, and then nothing is known.
    """
    protocol = transport.get_protocol()
    kind = _BufferedStandIn if isinstance(protocol, asyncio.BufferedProtocol) else _StreamingStandIn
    stand_in = kind(transport, protocol, arrived)
    transport.set_protocol(stand_in)
    return lambda: transport.get_protocol() is stand_in
