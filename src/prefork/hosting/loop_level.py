"""Serve what a program's asyncio loops serve: `create_server` for a held address becomes our accepting.

For every class of loop, those that a library defines later included: uvloop's too. Loops without a server of ours are
as ever, but for a heartbeat.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core.worker_requests import UNIX
from ..net.handlers import Handler, Kind
from ..system.sockets import inode
from ..worker.heartbeat import INTERVAL, Heartbeat
from .claims import Claim, Owner
from .host import Host
from .program_server import ProgramServer
from .serving import release_closed_loops, serving_of
from .socket_level import file_mode
from .stage import Stage

_METHODS = ("create_server", "create_unix_server", "run_forever", "add_signal_handler")

#: Arguments of `create_server`, and the limits that they are.
_TIMEOUTS = {"ssl_handshake_timeout": "handshake_timeout", "ssl_shutdown_timeout": "tls_shutdown_timeout"}


class LoopLevel:
    """Replaces methods of the loops' classes in this process, by `install`, for good."""

    def __init__(self, host: Host, on_other_thread: Callable[[], object]) -> None:
        self._host = host
        self._on_other_thread = on_other_thread
        """Called when a loop serves that is not in the main thread: that one may be blocked."""
        interval = host.context.config.settings.hang_timeout / 8
        self._interval = min(INTERVAL, interval)

    def install(self) -> None:
        # The base classes, which all of asyncio's own loops inherit from.
        _each_method(asyncio.BaseEventLoop, self._replace)
        for loop_class in _subclasses(asyncio.BaseEventLoop):
            _each_method(loop_class, self._replace)

        def adopt(cls: Any, /, **options: Any) -> None:
            super(asyncio.AbstractEventLoop, cls).__init_subclass__(**options)  # type: ignore[misc]  # cls is one
            if issubclass(cls, asyncio.BaseEventLoop):
                _each_method(cls, self._replace)
            elif _has_own(cls):
                # A loop that is not made of asyncio's, such as uvloop's: its methods are inherited from C.
                for name in _METHODS:
                    self._replace(cls, name, getattr(cls, name))

        asyncio.AbstractEventLoop.__init_subclass__ = classmethod(adopt)  # type: ignore[assignment, method-assign]  # typeshed has no such hook

    def _replace(self, cls: type, name: str, original: Callable[..., Any]) -> None:
        replacement = getattr(self, f"_{name}")(original)
        setattr(cls, name, functools.wraps(original)(replacement))

    # --- the heartbeat ------------------------------------------------------------------------------------------------

    def _run_forever(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run_forever(loop: asyncio.AbstractEventLoop) -> Any:
            begun = self._begin_heartbeat(loop)
            try:
                return original(loop)
            finally:
                if begun:
                    self._end_heartbeat(loop)

        return run_forever

    def _begin_heartbeat(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Beat in the first loop that runs, until it ends: the program may have others, in threads."""
        host = self._host
        with host.lock:
            if host.heartbeat is not None or host.stage is Stage.CHILD:
                return False
            try:
                host.heartbeat = (loop, Heartbeat(loop, host.row, self._interval))
            except RuntimeError:
                # The loop is closed: `run_forever` says so itself.
                return False
            return True

    def _end_heartbeat(self, loop: asyncio.AbstractEventLoop) -> None:
        host = self._host
        with host.lock:
            if host.heartbeat is not None and host.heartbeat[0] is loop:
                host.heartbeat[1].stop()
                host.heartbeat = None

    def _add_signal_handler(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_signal_handler(
            loop: asyncio.AbstractEventLoop, sig: int, callback: Callable[..., Any], *args: Any
        ) -> Any:
            found = original(loop, sig, callback, *args)
            if sig == signal.SIGTERM:
                self._host.loop_handler = callback
            return found

        return add_signal_handler

    # --- servers ------------------------------------------------------------------------------------------------------

    def _create_server(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def create_server(
            loop: asyncio.AbstractEventLoop,
            protocol_factory: Callable[[], asyncio.BaseProtocol],
            host: Any = None,
            port: Any = None,
            *,
            family: int = socket.AF_UNSPEC,
            flags: int = socket.AI_PASSIVE,
            sock: socket.socket | None = None,
            ssl: Any = None,
            start_serving: bool = True,
            **options: Any,
        ) -> Any:
            plain = functools.partial(
                original, loop, protocol_factory, host, port, family=family, flags=flags, sock=sock, ssl=ssl,
                start_serving=start_serving, **options,
            )  # fmt: skip
            owner = Owner()
            # What asyncio would reject, or serve by itself, is its own.
            if self._host.stage is not Stage.SERVING or isinstance(ssl, bool):
                return await plain()
            if sock is not None:
                if host is not None or port is not None or not self._host.claims.is_held(sock):
                    return await plain()
                claims = [Claim(sock)]
            else:
                addresses = await _resolve(loop, host, port, family, flags)
                release_closed_loops(self._host)
                found = self._claim(addresses, bool(options.get("reuse_port")), owner)
                if found is None:
                    return await plain()
                claims = found
            server = self._make(loop, protocol_factory, claims, ssl, options, owner, sock)
            if start_serving:
                await server.start_serving()
            return server

        return create_server

    def _create_unix_server(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def create_unix_server(
            loop: asyncio.AbstractEventLoop,
            protocol_factory: Callable[[], asyncio.BaseProtocol],
            path: Any = None,
            *,
            sock: socket.socket | None = None,
            ssl: Any = None,
            start_serving: bool = True,
            **options: Any,
        ) -> Any:
            plain = functools.partial(
                original, loop, protocol_factory, path, sock=sock, ssl=ssl, start_serving=start_serving, **options
            )
            if self._host.stage is not Stage.SERVING or isinstance(ssl, bool) or (path is None) == (sock is None):
                return await plain()
            owner = Owner()
            if sock is not None:
                claim = Claim(sock) if self._host.claims.is_held(sock) else None
            else:
                release_closed_loops(self._host)
                claim = self._host.claims.claim(owner, UNIX, os.fspath(path), mode=file_mode())
            if claim is None:
                owner.close()
                return await plain()
            server = self._make(loop, protocol_factory, [claim], ssl, options, owner, sock)
            if start_serving:
                await server.start_serving()
            return server

        return create_unix_server

    def _claim(self, addresses: Sequence[tuple[int, Any]], reuse_port: bool, owner: Owner) -> list[Claim] | None:
        """Claim all addresses; None if one of them is the worker's own. Raises OSError as `create_server` does."""
        claims: list[Claim] = []
        skipped: OSError | None = None
        for family, address in addresses:
            try:
                claim = self._host.claims.claim(owner, family, address, reuse_port=reuse_port)
            except OSError as exc:
                if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    # As asyncio: the family is not enabled on this machine.
                    skipped = exc
                    continue
                owner.close()
                reason = f"error while attempting to bind on address {address!r}: {exc.strerror or exc}"
                raise OSError(exc.errno, reason) from None
            if claim is None:
                owner.close()
                return None
            claims.append(claim)
        if not claims and skipped is not None:
            raise OSError(skipped.errno, f"could not bind on any address out of {[each[1] for each in addresses]!r}")
        return claims or None

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        claims: list[Claim],
        ssl_context: Any,
        options: dict[str, Any],
        owner: Owner,
        closes: socket.socket | None,
    ) -> ProgramServer:
        limits = self._host.context.config.settings.limits
        times = {field: options[name] for name, field in _TIMEOUTS.items() if options.get(name) is not None}
        limits = dataclasses.replace(limits, **times) if times else limits
        serving = serving_of(self._host, loop)
        base = serving.make_server(Handler(Kind.PROTOCOL, protocol_factory), limits, ssl_context)
        sockets: dict[int, socket.socket] = {}
        for claim in claims:
            for sock in (claim.sock, *claim.siblings):
                if sock is not None:
                    sockets.setdefault(inode(sock), sock)
        copies = [socket.socket(fileno=os.dup(sock.fileno())) for sock in sockets.values()]
        self._use_heartbeat(loop)
        if threading.current_thread() is not threading.main_thread():
            self._on_other_thread()
        return ProgramServer(self._host, serving, base, copies, not copies, owner, closes)

    def _use_heartbeat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Beat in the loop that serves, rather than in one that only runs: siblings pass connections to a live one."""
        host = self._host
        with host.lock:
            if host.loops or host.heartbeat is None or host.heartbeat[0] is loop:
                return
            before, beat = host.heartbeat
            host.heartbeat = (loop, Heartbeat(loop, host.row, self._interval))
        before.call_soon_threadsafe(beat._timer.cancel)


async def _resolve(
    loop: asyncio.AbstractEventLoop, host: Any, port: Any, family: int, flags: int
) -> list[tuple[int, Any]]:
    """Return the addresses that `create_server` binds for a host, or for several."""
    hosts = [None] if host in ("", None) else [host] if isinstance(host, str | bytes) else list(host)
    found: dict[tuple[int, Any], None] = {}
    for each in hosts:
        infos = await loop.getaddrinfo(each, port, family=family, type=socket.SOCK_STREAM, flags=flags)
        found.update({(int(info[0]), info[4]): None for info in infos})
    return list(found)


def _each_method(cls: type, replace: Callable[[type, str, Callable[..., Any]], None]) -> None:
    for name in _METHODS:
        if name in vars(cls):
            replace(cls, name, vars(cls)[name])


def _subclasses(cls: type) -> Iterable[type]:
    found: list[type] = cls.__subclasses__()
    for each in found:
        yield each
        yield from _subclasses(each)


def _has_own(cls: type) -> bool:
    """Return whether a loop has methods of its own, and not just those that asyncio declares."""
    return all(getattr(cls, name) is not getattr(asyncio.AbstractEventLoop, name) for name in _METHODS)
