"""Everything that prefork's networking uses of Python that is not public, with a fallback that uses public names only.

Each use is probed, so that a Python without it costs speed and never service. Nothing else in `net` may use a private
name of the standard library.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import constants
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol


class SSLPipe(Protocol):
    """The three methods of an SSLObject that every record needs."""

    def read(self, size: int) -> bytes: ...
    def write(self, data: bytes | memoryview) -> int: ...
    def pending(self) -> int: ...


# --- socket.socket._accept --------------------------------------------------------------------------------------------

_HAS_ACCEPT = hasattr(socket.socket, "_accept")


def descriptor_acceptor(listener: socket.socket) -> Callable[[], tuple[int, Any]] | None:
    """Return a function that accepts a descriptor, which the caller owns, and the peer's address.

    `socket.accept` also makes two enums and a socket object, which costs 1 us a connection. Return None if it must be
    called all the same, because a subclass overrides it or because there is no other.
    """
    if not _HAS_ACCEPT or getattr(type(listener), "accept", None) is not socket.socket.accept:
        return None
    return listener._accept  # type: ignore[attr-defined, no-any-return]  # typeshed leaves it out


# --- ssl.SSLObject._sslobj --------------------------------------------------------------------------------------------


def raw_ssl_object(connection: ssl.SSLObject) -> SSLPipe:
    """Return the C object that `connection` wraps, or `connection` itself, which has the same methods in Python.

    The C object saves two Python calls a record. It is looked at for each connection: a context made just to probe it
    would cost each start 0.2 ms.
    """
    raw = getattr(connection, "_sslobj", None)
    usable = all(hasattr(raw, name) for name in ("read", "write", "pending"))
    return raw if usable else connection  # type: ignore[return-value]  # a union with None and Any


def verified_chain(connection: ssl.SSLObject) -> tuple[bytes, ...] | None:
    """Return the certificates of the peer's verified chain in DER, its own first; None if OpenSSL keeps none.

    Raises AttributeError if this Python cannot tell. `SSLObject.get_verified_chain` is public from Python 3.13 on, and
    belongs to the C object before.
    """
    public = getattr(connection, "get_verified_chain", None)
    if public is not None:
        return tuple(public()) or None
    raw: Any = getattr(connection, "_sslobj", None)
    found = raw.get_verified_chain()
    return None if found is None else tuple(ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in found) or None


# --- what loop.sendfile asks of a transport ---------------------------------------------------------------------------

if TYPE_CHECKING:
    SendfileTransport = asyncio.Transport
else:
    #: The base of a transport that `loop.sendfile` accepts: it tests for this class.
    SendfileTransport = getattr(asyncio.transports, "_FlowControlMixin", asyncio.Transport)

#: The value of a transport's `_sendfile_compatible` that makes `loop.sendfile` read the file and call `write`.
SENDFILE_FALLBACK: object = getattr(getattr(constants, "_SendfileMode", None), "FALLBACK", None)


# --- what `get_extra_info` of asyncio's transports looks at -----------------------------------------------------------


def extra_info(transport: Any) -> dict[str, object] | None:
    """Return the dictionary of `get_extra_info`, to which facts can be added; None if `transport` shows none.

    With TLS it is that of the SSL protocol, which is asked first.
    """
    found = getattr(getattr(transport, "_ssl_protocol", transport), "_extra", None)
    return found if isinstance(found, dict) else None


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
