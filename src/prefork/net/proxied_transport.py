"""Have the transport of a protocol tell what the connection's proxy told: the client's address, and the PROXY header.

Bytes pass through unchanged. Which facts these are is decided in protocol_connection.py.
"""

from __future__ import annotations

import asyncio
import socket
from asyncio import trsock
from collections.abc import Iterable, Mapping
from typing import Any

from .cpython import extra_info


def with_extra_info(transport: Any, facts: Mapping[str, object], sock: socket.socket) -> Any:
    """Return a transport whose `get_extra_info` has `facts`: `transport` itself, if it lets us add them.

    Those of uvloop do not, and ask the kernel for the peer's address. `sock` is the socket that knows another one.
    """
    own = extra_info(transport)
    if own is None:
        return ProxiedTransport(transport, {**facts, "socket": trsock.TransportSocket(sock)})
    own.update(facts)
    return transport


class ProxiedTransport(asyncio.Transport):
    """A view of `transport` with other facts. `loop.start_tls` of uvloop does not take it."""

    # Not with the attributes of its base, which has an empty dictionary of facts.
    def __init__(self, transport: Any, facts: Mapping[str, object]) -> None:
        self._transport = transport
        self._facts = facts

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport!r}>"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._facts[name] if name in self._facts else self._transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._transport.writelines(list_of_data)

    def write_eof(self) -> None:
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return bool(self._transport.can_write_eof())

    def abort(self) -> None:
        self._transport.abort()

    def close(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return bool(self._transport.is_closing())

    def is_reading(self) -> bool:
        return bool(self._transport.is_reading())

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> Any:
        return self._transport.get_protocol()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> Any:
        return self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> Any:
        return self._transport.get_write_buffer_limits()
