"""`TCPServer`: the server for programs that have a loop of their own, with the conventions of `asyncio.Server`.

Names, certificates and sockets of its own are all that it adds to base_server.py.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Self

from ..checks import check_choice, check_seconds, reject
from ..config import TLS, Limits
from ..core.proxy_trust import proxy_policy
from ..events import log
from ..proxies import PROXY_PROTOCOLS, ProxyProtocol, check_proxies, proxy_sources
from ..system.listen_options import ListenOptions
from ..system.sockets import Resolved, bind_resolved, require_listening, resolve
from ..system.tls_contexts import build_contexts
from .admission import LocalAdmission
from .base_server import BaseServer
from .handlers import Kind, Service, classify, classify_made
from .tls import prepare_context


class TCPServer(BaseServer):
    """Serves `handler` on any number of listening sockets, in the running asyncio loop.

    `handler` is what `prefork serve` takes as its target: a stream handler, an asyncio streams handler or callback, a
    protocol class or factory, a lifespan object, or a worker factory. `tls` is a certificate and key, several of
    them that are chosen by server name, or a context of your own. `proxy_protocol` and `proxy_from`: each connection
    begins with a PROXY header ("v1", "v2" or "any") of one of these proxies, such as "10.0.0.0/8". Events go to the
    logger `prefork`.

        async with TCPServer(handle) as server:
            server.listen(9000)
            await server.serve_forever()

    Entering the block calls a worker factory and starts a lifespan object; leaving it stops the object. Such a service
    is served inside of the block only.
    Leaving the block, also by cancellation, drains the server for up to `drain_timeout` seconds. Leaving it by any
    other exception aborts what is open.

    Raises ServiceError for a handler of the wrong shape, ConfigError for any other argument that cannot be used.
    """

    def __init__(
        self,
        handler: Service,
        *,
        tls: TLS | Sequence[TLS] | ssl.SSLContext | None = None,
        limits: Limits | None = None,
        drain_timeout: float = 30.0,
        proxy_protocol: ProxyProtocol = "off",
        proxy_from: str | Sequence[str] = (),
    ) -> None:
        limits = Limits() if limits is None else limits
        if not isinstance(limits, Limits):
            reject("limits", limits, "must be a prefork.Limits")
        check_seconds("drain_timeout", drain_timeout, zero=True)
        ssl_context = _ssl_context(tls)
        check_choice("proxy_protocol", proxy_protocol, choices=PROXY_PROTOCOLS)
        sources = proxy_sources(proxy_from)
        check_proxies(proxy_protocol, sources)
        admission = LocalAdmission(limits)
        super().__init__(
            classify(handler),
            limits=limits,
            admission=admission,
            emit=log,
            ssl_context=ssl_context,
            proxies=proxy_policy(proxy_protocol, sources),
        )
        self._drain_timeout = drain_timeout
        self._own_sockets: list[socket.socket] = []
        self._must_enter = self._handler.has_start
        """Whether a worker factory or the `start()` of a lifespan object has still to be awaited, by `async with`."""

    def listen(self, port: int, address: str | None = None, backlog: int = 128) -> None:
        """Bind `port` on `address` and accept. 0 is any free port (see `sockets`); None is all interfaces.

        `address` is a number, or localhost. A host name raises ValueError because looking it up would block the loop:
        use `listen_host`. Raises BindError, and RuntimeError as `add_socket` does, with nothing bound. `close` closes
        these sockets.
        """
        numeric = 0 if address == "localhost" else socket.AI_NUMERICHOST
        try:
            resolved = resolve(port, address, flags=socket.AI_PASSIVE | numeric)
        except socket.gaierror as exc:
            raise ValueError(f"listen() takes an IP address, not {address!r}: await listen_host() instead") from exc
        self._listen(resolved, backlog)

    async def listen_host(self, port: int, host: str, backlog: int = 128) -> None:
        """Look up `host` in a thread, bind `port` on all of its addresses, and accept.

        Raises socket.gaierror for a name that does not resolve, BindError with nothing bound.
        """
        loop = asyncio.get_running_loop()
        resolved = await loop.run_in_executor(None, functools.partial(resolve, port, host))
        self._listen(resolved, backlog)

    def _listen(self, resolved: Resolved, backlog: int) -> None:
        self._check_startable()
        sockets = bind_resolved(resolved, ListenOptions(backlog))
        self._own_sockets += sockets
        self.add_sockets(sockets)

    def close(self) -> None:
        """Stop accepting, at once (idempotent), and close the sockets of `listen`. Open connections go on.

        `wait_closed` waits for them. The queue of a socket from `add_socket` is left to other processes that hold it.
        """
        super().close()
        for sock in self._own_sockets:
            sock.close()
        self._own_sockets.clear()

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept from listening sockets. The caller keeps them: they are made non-blocking, and not closed.

        Raises as `add_socket` does, with none of them added.
        """
        sockets = list(sockets)
        for sock in sockets:
            require_listening(sock)
        super().add_sockets(sockets)

    def add_socket(self, sock: socket.socket) -> None:
        """Accept from one listening socket, as `add_sockets` does.

        Raises ValueError for a socket that does not listen. Raises RuntimeError after `close`, without a running loop,
        and for a lifespan object or a worker factory outside of `async with`.
        """
        require_listening(sock)
        self._check_startable()
        super().add_socket(sock)

    def _check_startable(self) -> None:
        self._check_open()
        asyncio.get_running_loop()
        self._check_entered()

    def _check_entered(self) -> None:
        # Not started here: connections are accepted from the first socket on, so a handler could run before start().
        if self._must_enter:
            raise RuntimeError(
                f"a {self._handler.kind.value} is started by `async with server`: call this inside of it"
            )

    async def serve_forever(self) -> None:
        """Wait until `close()`. Raises ListenerError if a listening socket itself has failed.

        Cancelling it drains the server; cancelling it again aborts what is open. Raises RuntimeError for a lifespan
        object or a worker factory outside of `async with`.
        """
        self._check_entered()
        try:
            await super().serve_forever()
        except asyncio.CancelledError:
            await self.drain()
            raise

    async def drain(self, timeout: float | None = None) -> int:
        """Close, tell the service, and wait up to `timeout` seconds for all connections and its `drain()` to end.

        The default is the server's `drain_timeout`. Streams are told by `stream.draining`, a lifespan object and
        protocols by their `drain()`. Abort what is left of the connections, and return their number. Cancelling it
        aborts what is open.
        """
        return await self.drain_bounded(self._drain_timeout if timeout is None else timeout)

    async def __aenter__(self) -> Self:
        if self._handler.kind is Kind.FACTORY:
            self._handler = classify_made(await self._handler.call())
        await self._handler.start()
        self._must_enter = False
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        graceful = kind is None or issubclass(kind, asyncio.CancelledError)
        try:
            await self.drain(None if graceful else 0)
        finally:
            await self._handler.stop()


def _ssl_context(tls: object) -> ssl.SSLContext | None:
    """Return the context that connections begin with. Raises ConfigError."""
    if isinstance(tls, ssl.SSLContext):
        prepare_context(tls)
        return tls
    if tls is None:
        return None
    several = tls if isinstance(tls, list | tuple) else (tls,)
    # An empty list is more likely a mistake than the wish to serve in the clear.
    if not several or not all(isinstance(each, TLS) for each in several):
        reject("tls", tls, "must be a prefork.TLS, several of them, or an ssl.SSLContext")
    return build_contexts(several, log).main
