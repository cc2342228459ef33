"""The server that `create_server` returns in a worker: `asyncio.Server`'s interface, on held sockets.

Accepting and connections are in `serving.py` and `net/base_server.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from asyncio import trsock
from collections.abc import Sequence
from typing import Any

from ..net.base_server import BaseServer
from .claims import Owner
from .host import Host
from .serving import LoopServing
from .socket_level import listen_held


class ProgramServer(asyncio.Server):
    """One server of a program. Its sockets are duplicates, which it owns and closes.

    `is_serving` stays true while the worker drains, because connections that were accepted are still served.
    """

    def __init__(
        self,
        host: Host,
        serving: LoopServing,
        server: BaseServer,
        sockets: Sequence[socket.socket],
        silent: bool,
        owner: Owner,
        closes: socket.socket | None = None,
    ) -> None:
        # Not that of asyncio.Server: nothing of it is used but the type.
        self._host = host
        self._hosting = serving
        self._base = server
        self._held: tuple[socket.socket, ...] | None = tuple(sockets)
        self._silent = silent
        """It pretends to listen: another worker has the address for itself (--exclusive)."""
        self._owner = owner
        self._closes = closes
        """The socket that the program gave, to be closed with the server, as asyncio does."""
        self._started = False
        self._forever: asyncio.Future[None] | None = None
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    @property
    def sockets(self) -> tuple[Any, ...]:
        return () if self._held is None else tuple(trsock.TransportSocket(sock) for sock in self._held)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._hosting.loop

    def is_serving(self) -> bool:
        return self._started and self._held is not None

    def begin(self) -> None:
        """Start to accept, unless that was done already."""
        if self._started:
            return
        if self._held is None:
            raise RuntimeError(f"server {self!r} is closed")
        self._started = True
        if self._silent:
            return
        if self._closes is not None:
            # Accepted from here on by prefork, although the program may have listened on it.
            self._host.listeners.discard(self._closes.fileno())
        for sock in self._held:
            listen_held(sock, self._host.backlog)
        self._hosting.start(self._base, self._held, self)
        self._host.listens(*self._held)

    async def start_serving(self) -> None:
        self.begin()
        # As asyncio does, so that accepting has begun when this returns.
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._held is None:
            raise RuntimeError(f"server {self!r} is closed")
        self.begin()
        self._forever = asyncio.get_running_loop().create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            try:
                self.close()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._forever = None

    def close(self) -> None:
        sockets, self._held = self._held, None
        if sockets is None:
            return
        self._owner.close()
        self._hosting.stop(self._base)
        for sock in sockets:
            sock.close()
        if self._closes is not None:
            self._closes.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._ended.set()

    def close_clients(self) -> None:
        self._base.close_clients()

    def abort_clients(self) -> None:
        self._base.abort_clients()

    async def wait_closed(self) -> None:
        await self._ended.wait()
        # Before 3.12 asyncio's servers did not wait for their connections (CPython issue 79033).
        if self._started and not self._silent and sys.version_info >= (3, 12):
            await self._base.wait_closed()

    def release(self) -> None:
        """Close the sockets, without a loop: it is closed, or the server never began. Raises nothing."""
        sockets, self._held = self._held, None
        self._owner.close()
        for sock in sockets or ():
            sock.close()

    def __del__(self) -> None:
        # Without a warning: asyncio's own servers give none either.
        with contextlib.suppress(Exception):
            self.release()
