"""`ReaderWriter`: a stream as it is given to handlers that were written for asyncio's reader and writer.

Only what differs from a stream that is given to `handle(stream)`: what it claims to be, and defaults of asyncio.
"""

from __future__ import annotations

import asyncio
import ssl

from .stream import Stream


class _ReaderAndWriter(asyncio.StreamReader, asyncio.StreamWriter):
    """Never made: the class that `isinstance` is told."""


class ReaderWriter(Stream):
    """Both arguments of an asyncio streams handler.

    `isinstance` holds for asyncio's StreamReader and StreamWriter, because it asks `__class__` where the type does not
    match. Nothing is inherited from them: their state and finalizer would cost each connection 1 KiB and 1 us.
    """

    __slots__ = ()

    @property  # type: ignore[misc]  # typeshed declares a writable attribute
    def __class__(self) -> type:
        return _ReaderAndWriter

    async def start_tls(
        self,
        sslcontext: ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Change to TLS from the next byte on, as the server's side. `server_hostname` is ignored, as in asyncio."""
        await super().start_tls(
            sslcontext, ssl_handshake_timeout=ssl_handshake_timeout, ssl_shutdown_timeout=ssl_shutdown_timeout
        )
