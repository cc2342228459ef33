"""Give a program held sockets for the addresses that it binds, at the level of `socket.socket`.

bind(2) to a held address puts the held socket under the program's descriptor (dup2(2)); everything else the program
does as ever. Programs on asyncio and uvloop are served better, in `loop_level.py`.

The held socket is shared by all workers, and so is what belongs to its open file description: it stays non-blocking,
and it is not shut down.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import time
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..core.worker_requests import IPV4, IPV6, UNIX
from . import epolls
from .host import Host
from .late_imports import after_import
from .stage import Stage

_FAMILIES = (UNIX, IPV4, IPV6)
#: Seconds for "no timeout": a blocking mode would clear O_NONBLOCK, and a sibling's accept(2) could block its loop.
_FOREVER = 1e8
#: Seconds between looks at a queue that is left to siblings, for a program that blocks in accept(2).
_PAUSE = 0.05

#: Where libraries of greenlets have the class that their sockets wrap: one of its own, or a copy of the standard one.
_WRAPPED = {"gevent._socket3": "_wrefsocket", "eventlet.greenio.base": "_original_socket"}
_METHODS = (
    "bind",
    "listen",
    "accept",
    "shutdown",
    "settimeout",
    "setblocking",
    "connect",
    "connect_ex",
    "getsockname",
    "getsockopt",
)
#: As they were: they are called for every other socket.
_original: dict[str, Callable[..., Any]] = {name: getattr(socket.socket, name) for name in _METHODS}


class SocketLevel:
    """Replaces methods of `socket.socket` in this process, by `install`, for good."""

    def __init__(self, host: Host, on_listening: Callable[[], object]) -> None:
        self._host = host
        self._on_listening = on_listening
        """Called when the program listens by itself, on a socket that it accepts from."""
        self._claimed: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._silent: weakref.WeakKeyDictionary[socket.socket, tuple[Any, socket.socket]] = weakref.WeakKeyDictionary()
        """Sockets that only pretend to listen: the address of each, and the other end of what is under it."""

    def install(self) -> None:
        for name in _original:
            self._install_method(socket.socket, name, getattr(self, f"_{name}"))
        for module, name in _WRAPPED.items():
            after_import(module, functools.partial(self._install_for_wrapped, name))

    def _install_for_wrapped(self, name: str, module: ModuleType) -> None:
        """Cover sockets of greenlets, which wrap objects of another class."""
        wrapped = getattr(module, name, None)
        if isinstance(wrapped, type) and wrapped is not socket.socket:
            for name in _original:
                if name != "accept":
                    self._install_method(wrapped, name, getattr(self, f"_{name}"))
            self._install_method(wrapped, "_accept", self._accept_descriptor)

    def _install_method(self, cls: type, name: str, function: Callable[..., Any]) -> None:
        setattr(cls, name, _as_method(name, function))

    # --- binding ------------------------------------------------------------------------------------------------------

    def _bind(self, sock: socket.socket, address: Any) -> None:
        if not self._is_candidate(sock):
            _original["bind"](sock, address)
            return
        resolved = _resolve(sock, address)
        claim = None
        if resolved is not None:
            v6only = sock.family != socket.AF_INET6 or _option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            reuse_port = sock.family != socket.AF_UNIX and _option(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT)
            claim = self._host.claims.claim(
                sock, int(sock.family), resolved, v6only=v6only, reuse_port=reuse_port, mode=file_mode()
            )
        if claim is None:
            _original["bind"](sock, address)
        elif claim.sock is None:
            # Never readable, and nothing connects to it.
            end, other = socket.socketpair()
            with end:
                epolls.replace(sock.fileno(), end.fileno())
            self._silent[sock] = (resolved, other)
        else:
            epolls.replace(sock.fileno(), claim.sock.fileno())
            self._claimed.add(sock)

    def _is_candidate(self, sock: socket.socket) -> bool:
        return (
            self._host.stage is Stage.SERVING
            and sock.family in _FAMILIES
            and sock.type == socket.SOCK_STREAM
            and sock not in self._claimed
            and sock not in self._silent
        )

    def _listen(self, sock: socket.socket, *backlog: int) -> None:
        if sock in self._silent:
            return
        if not self._is_held(sock):
            _original["listen"](sock, *backlog)
            return
        # It listens already, unless no worker did for a while. The longest backlog that anything asks for wins.
        _original["listen"](sock, max(*backlog, self._host.backlog, 0))
        self._host.listeners.add(sock.fileno())
        if not self._host.reads_headers:
            # Otherwise it listens once a loop accepts from the socket.
            self._host.listens(sock)
        self._on_listening()

    def _getsockname(self, sock: socket.socket) -> Any:
        silent = self._silent.get(sock)
        return _original["getsockname"](sock) if silent is None else silent[0]

    def _getsockopt(self, sock: socket.socket, *arguments: Any) -> Any:
        value = _original["getsockopt"](sock, *arguments)
        if arguments[:2] == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and sock in self._claimed:
            # Otherwise a program that asks, as gunicorn does, would not call listen(2) at all.
            return int(sock.fileno() in self._host.listeners)
        return value

    def _connect(self, sock: socket.socket, address: Any) -> None:
        self._unclaim(sock)
        _original["connect"](sock, address)

    def _connect_ex(self, sock: socket.socket, address: Any) -> Any:
        self._unclaim(sock)
        return _original["connect_ex"](sock, address)

    def _unclaim(self, sock: socket.socket) -> None:
        """Give a socket that turns out to be a client's back to itself: bind(2) only chose where it connects from."""
        if sock not in self._claimed and sock not in self._silent:
            return
        name = self._getsockname(sock)
        self._claimed.discard(sock)
        self._silent.pop(sock, None)
        with socket.socket(sock.family, sock.type, sock.proto) as own:
            epolls.replace(sock.fileno(), own.fileno())
        sock.settimeout(sock.gettimeout())
        if sock.family != socket.AF_UNIX:
            _original["bind"](sock, (name[0], 0, *name[2:]))

    # --- accepting ----------------------------------------------------------------------------------------------------

    def _accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        if sock not in self._silent and not self._is_held(sock):
            connection, address = _original["accept"](sock)
            return connection, address
        if self._host.reads_headers:
            self._host.refuse_own_accepting()
        while True:
            if sock in self._silent or self._host.stage is Stage.STOPPED:
                self._accept_nothing(sock)
                continue
            try:
                fd, address = sock._accept()  # type: ignore[attr-defined]  # what `accept` itself calls
            except BlockingIOError:
                # Another worker was faster, or the socket is in blocking mode and its description is not.
                if sock.gettimeout() is not None:
                    raise
                _wait(sock)
                continue
            self._host.track(fd)
            connection = socket.socket(sock.family, sock.type, sock.proto, fileno=fd)
            if socket.getdefaulttimeout() is None and sock.gettimeout():
                connection.setblocking(True)
            return connection, address

    def _accept_descriptor(self, sock: Any) -> tuple[int, Any]:
        """Accept as greenlets do, which have waited for the connection, and make a socket of the descriptor."""
        held = sock in self._silent or self._is_held(sock)
        if held and (sock in self._silent or self._host.stage is Stage.STOPPED):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if held and self._host.reads_headers:
            self._host.refuse_own_accepting()
        fd, address = _raw_accept(sock)
        if held:
            self._host.track(fd)
        return fd, address

    def _accept_nothing(self, sock: socket.socket) -> None:
        """Behave as with an empty queue; return after a moment if the program waits for ever."""
        timeout = sock.gettimeout()
        if timeout == 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if timeout is not None and timeout < _FOREVER:
            time.sleep(timeout)
            raise TimeoutError("timed out")
        time.sleep(_PAUSE)

    # --- what belongs to all workers ----------------------------------------------------------------------------------

    def _shutdown(self, sock: socket.socket, how: int) -> None:
        # It would stop all workers from accepting.
        if sock not in self._silent and not self._is_held(sock):
            _original["shutdown"](sock, how)

    def _settimeout(self, sock: socket.socket, value: float | None) -> None:
        _original["settimeout"](sock, _FOREVER if value is None and self._is_held(sock) else value)

    def _setblocking(self, sock: socket.socket, flag: bool) -> None:
        if flag and self._is_held(sock):
            _original["settimeout"](sock, _FOREVER)
        else:
            _original["setblocking"](sock, flag)

    def _is_held(self, sock: socket.socket) -> bool:
        # Also one that the program made from a descriptor of another.
        return sock in self._claimed or self._host.claims.is_held(sock)


#: The C function that accepts a descriptor, for sockets of any class.
_raw_accept = socket.SocketType._accept  # type: ignore[attr-defined]  # typeshed leaves it out


def listen_held(sock: socket.socket, backlog: int) -> None:
    """Listen on a held socket that prefork accepts from, and not the program."""
    _original["listen"](sock, backlog)


def _as_method(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: socket.socket, *args: Any) -> Any:
        return function(self, *args)

    method.__name__ = name
    method.__qualname__ = f"socket.{name}"
    method.__doc__ = getattr(_original.get(name), "__doc__", None)
    return method


def _resolve(sock: socket.socket, address: Any) -> Any:
    """Return a numeric address as bind(2) takes it; None for what bind(2) itself has to judge."""
    if sock.family == socket.AF_UNIX:
        name = os.fsdecode(address) if isinstance(address, str | bytes | os.PathLike) else ""
        return name or None
    try:
        host, port, *rest = address
        if isinstance(port, int) and 0 <= port <= 65535 and isinstance(host, str | bytes | bytearray):
            text = host if isinstance(host, str) else bytes(host).decode("ascii")
            found = socket.getaddrinfo(text or None, port, sock.family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
            where = found[0][4]
            return (*where[:2], *(rest or where[2:])) if sock.family == socket.AF_INET6 else where
    except (TypeError, ValueError, OSError):
        pass
    return None


def _option(sock: socket.socket, level: int, name: int) -> bool:
    try:
        return bool(sock.getsockopt(level, name))
    except OSError:
        return False


def file_mode() -> int:
    """Return the mode that the file of a unix socket gets by the umask, as bind(2) would make it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return 0o777 & ~int(line.split()[1], 8)
    return 0o700


def _wait(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.poll()
