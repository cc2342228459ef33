"""Everything that prefork's networking uses of Python that is not public, with a fallback that uses public names only.

Each use is probed, so that a Python without it costs speed and never service. Nothing else in `net` may use a private
name of the standard library.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Protocol


class SSLPipe(Protocol):
    """The three methods of an SSLObject that every record needs."""

    def read(self, size: int) -> bytes: ...
    def write(self, data: bytes | memoryview) -> int: ...
    def pending(self) -> int: ...


# --- socket.socket._accept --------------------------------------------------------------------------------------------

_HAS_ACCEPT = hasattr(socket.socket, "_accept")


def accept_descriptor(listener: socket.socket) -> tuple[int, Any]:
    """Accept a connection from `listener` and return its descriptor, which the caller owns, and the peer's address.

    `socket.accept` also makes two enums and a socket object, which costs 1 us a connection.
    """
    if _HAS_ACCEPT:
        return listener._accept()  # type: ignore[attr-defined, no-any-return]  # typeshed leaves it out
    connection, address = listener.accept()
    return connection.detach(), address


# --- ssl.SSLObject._sslobj --------------------------------------------------------------------------------------------


def raw_ssl_object(connection: ssl.SSLObject) -> SSLPipe:
    """Return the C object that `connection` wraps, or `connection` itself, which has the same methods in Python.

    The C object saves two Python calls a record. It is looked at for each connection: a context made just to probe it
    would cost each start 0.2 ms.
    """
    raw = getattr(connection, "_sslobj", None)
    usable = all(hasattr(raw, name) for name in ("read", "write", "pending"))
    return raw if usable else connection  # type: ignore[return-value]  # a union with None and Any


# --- the future protocol ----------------------------------------------------------------------------------------------


class FutureLike:
    """An object that a task awaits as it does a future: see `asyncio.isfuture` on `_asyncio_future_blocking`.

    The task tests and clears the attribute, then calls `add_done_callback`; before it continues it calls `result`. A
    subclass supplies the methods of `asyncio.Future` and sets the attribute to False when it is made.
    """

    __slots__ = ("_asyncio_future_blocking",)


class _Probe(FutureLike):
    def __init__(self) -> None:
        self._asyncio_future_blocking = False


#: Whether this Python's tasks await a FutureLike.
HAS_FUTURE_PROTOCOL = asyncio.isfuture(_Probe())
