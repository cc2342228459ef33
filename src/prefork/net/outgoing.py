"""`connect`: open a connection as a client, and return its `Stream`.

Resolves the name and tries the addresses. What a stream does is in stream.py; no server counts these connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from ..checks import check_int, check_ip_address, check_seconds
from ..config import Limits
from ..errors import ConnectionTimeoutError
from ..events import Emit, log
from ..text import format_address
from .listener_options import set_tcp_options
from .poller import WRITE
from .server_state import ServerState
from .stream import Stream
from .waiter import Waiter

#: Where a loop keeps the state of its outgoing connections. An attribute lives as long as the loop; a table of loops
#: would keep each of them alive, because the state refers to its loop.
_ATTRIBUTE = "_prefork_outgoing"
#: Choose the local port at connect(2), not at bind(2): otherwise all destinations share one range of ports (ip(7)).
_IP_BIND_ADDRESS_NO_PORT = getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24)

_Address = tuple[int, Any]
"""The family and the socket address."""


class _Outgoing:
    """What the outgoing connections of one loop share, made with the first of them."""

    def __init__(self, limits: Limits, emit: Emit) -> None:
        self._limits = limits
        self._emit = emit
        self._state: ServerState | None = None
        self._end: AsyncGenerator[None, None] | None = None

    async def state(self, loop: asyncio.AbstractEventLoop) -> ServerState:
        if self._state is None:
            self._state = ServerState(loop, self._limits, self._emit)
            self._end = self._close_at_end()
            await anext(self._end)
        return self._state

    # A loop does not tell of its end, but `shutdown_asyncgens` closes the asynchronous generators that were begun in
    # it. Where that is not called, the state is released when the loop is collected as garbage.
    async def _close_at_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            state, self._state = self._state, None
            if state is not None:
                state.close()


def configure_outgoing(loop: asyncio.AbstractEventLoop, limits: Limits, emit: Emit) -> None:
    """Let the connections that `loop` opens have the limits of its server, and report to `emit`.

    `Limits.max_age` is left out, because it is for peers that come.
    """
    setattr(loop, _ATTRIBUTE, _Outgoing(replace(limits, max_age=None), emit))


async def _state(loop: asyncio.AbstractEventLoop) -> ServerState:
    if not hasattr(loop, _ATTRIBUTE):
        configure_outgoing(loop, Limits(), log)
    outgoing: _Outgoing = getattr(loop, _ATTRIBUTE)
    return await outgoing.state(loop)


async def connect(
    host: str,
    port: int,
    *,
    timeout: float = 10.0,
    local_address: str | None = None,
    tls: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
) -> Stream:
    """Open a TCP connection and return its stream, which the caller closes or aborts.

    The addresses of `host` are tried one after the other, in the order of getaddrinfo(3), each with an equal share of
    the time that is left. `timeout` is in seconds, for all of it: name, connection, and TLS handshake.
    `local_address` is an IP address to connect from. With `tls` the stream speaks TLS, and the certificate is checked
    against `server_hostname`, by default `host`, as far as the context asks for it.

    Raises ConnectionTimeoutError, which is a TimeoutError, when the time is over; OSError of the last address that
    failed, as ConnectionRefusedError; socket.gaierror for a name that does not resolve; ssl.SSLError for a failed
    handshake. Nothing is open then, nor after a cancellation.

    In a worker the limits are those of the server, without `max_age`. The connection is in no count of the server, and
    `draining` stays false. It ends with the process if nothing closes it.
    """
    check_int("port", port, 1, 65535)
    check_seconds("timeout", timeout, zero=False)
    if local_address is not None:
        check_ip_address("local_address", local_address)
    loop = asyncio.get_running_loop()
    state = await _state(loop)
    deadline = loop.time() + timeout
    try:
        async with asyncio.timeout_at(deadline):
            sock, address = await _connect_first(state, await _resolve(loop, host, port), local_address, deadline)
            stream = _make_stream(sock, address, state)
            if tls is not None:
                await _start_tls(stream, tls, server_hostname or host, timeout)
            return stream
    except TimeoutError as exc:
        if exc.errno is not None:
            # ETIMEDOUT: the kernel has given up before.
            raise
        raise ConnectionTimeoutError(f"connect to {host}:{port}: not connected within {timeout:g} s") from None


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> Sequence[_Address]:
    """Return the addresses of `host`: a name, looked up in a thread of the loop, or a number."""
    for family, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return [(family, (host, port, *rest))]
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as exc:
        # An empty or long label, or a NUL: handlers connect to names that peers chose, and expect an OSError.
        raise socket.gaierror(socket.EAI_NONAME, "the host can be no name") from exc
    return [(family, address) for family, _, _, _, address in found]


async def _connect_first(
    state: ServerState, addresses: Sequence[_Address], local: str | None, deadline: float
) -> tuple[socket.socket, object]:
    """Return a connected socket to the first address that answers, and that address."""
    for left in range(len(addresses), 1, -1):
        family, address = addresses[-left]
        try:
            async with asyncio.timeout((deadline - state.loop.time()) / left):
                return await _attempt(state, family, address, local), address
        except OSError:
            # The next address may answer.
            pass
    if not addresses:
        raise OSError("the name has no address")
    family, address = addresses[-1]
    # The last one, often the only one, has all of the time that is left, which the caller bounds.
    return await _attempt(state, family, address, local), address


async def _attempt(state: ServerState, family: int, address: Any, local: str | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_tcp_options(sock, state.limits, counts_unsent=True)
        if local is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((local, 0))
        await _establish(state, sock, address)
    except OSError as exc:
        sock.close()
        if exc.errno is not None:
            # The class follows from the number: ConnectionRefusedError stays one.
            raise OSError(exc.errno, f"connect to {format_address(address)}: {exc.strerror}") from exc
        raise
    except BaseException:
        sock.close()
        raise
    return sock


class _Connecting:
    """What the poller reports to while a connection is being established. The loop's own `sock_connect` would cost a
    future and an iteration more."""

    __slots__ = ("waiter",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiter = Waiter(loop)

    def _on_ready(self, _mask: int) -> None:
        self.waiter.wake()


async def _establish(state: ServerState, sock: socket.socket, address: Any) -> None:
    """Connect a non-blocking socket (connect(2), EINPROGRESS). Raises OSError."""
    error = sock.connect_ex(address)
    if error == errno.EINPROGRESS:
        connecting, fd = _Connecting(state.loop), sock.fileno()
        state.poller.add(fd, connecting)
        try:
            while error == errno.EINPROGRESS:
                state.poller.arm(fd, WRITE)
                await connecting.waiter
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or _progress(sock)
        finally:
            state.poller.remove(fd, connecting, True)
    if error:
        raise OSError(error, os.strerror(error))


def _progress(sock: socket.socket) -> int:
    """Return 0, or EINPROGRESS after an event that was meant for an earlier socket of the same number."""
    try:
        sock.getpeername()
    except OSError:
        return errno.EINPROGRESS
    return 0


def _make_stream(sock: socket.socket, address: object, state: ServerState) -> Stream:
    try:
        return Stream(sock, address, state)
    except BaseException:
        # The kernel has no memory to watch it.
        sock.close()
        raise


async def _start_tls(stream: Stream, tls: ssl.SSLContext, server_hostname: str, timeout: float) -> None:
    try:
        await stream.start_tls(tls, server_hostname=server_hostname, ssl_handshake_timeout=timeout)
    except BaseException:
        stream.abort()
        raise
