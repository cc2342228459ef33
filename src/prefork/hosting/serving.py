"""Serve the servers of one event loop of a program: admission, dispatch among workers, and the end of accepting.

What the program sees of a server is in `program_server.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Protocol

from ..config import Limits
from ..core.proxy_trust import proxy_policy
from ..net.base_server import BaseServer
from ..net.handlers import Handler
from ..system.scoreboard import FleetSetting, WorkerStat, fence
from ..system.sockets import inode
from ..worker.dispatch import Dispatcher
from ..worker.fleet_admission import FleetAdmission
from ..worker.held_back import HeldBackTimer
from ..worker.main import MAX_WAITING
from .host import Host

#: A tag, and the value that tells which servers a worker has, are shared as positive numbers of this many bits.
_BITS = 62
#: Those for the inode of a socket; the rest tell apart the servers on one socket.
_INODE_BITS = 32


class Releasable(Protocol):
    """Owns the sockets of a server."""

    def release(self) -> None: ...


class LoopServing:
    """The servers of one loop, which owns it; made in that loop with its first server.

    Connections are passed between workers by the first loop that serves. Another one, in a thread of the program's,
    serves what it accepts.
    """

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self.loop = loop
        self._servers: dict[int, BaseServer] = {}
        """By the tag of the server, which tells its first socket in every worker."""
        self._closed: set[BaseServer] = set()
        """Closed servers that still have connections."""
        self._owners: dict[BaseServer, Releasable] = {}
        """What owns the sockets of each."""
        self._dispatcher: Dispatcher | None = None
        make_access_log = host.context.make_access_log
        self._access_log = None if make_access_log is None else make_access_log(loop)
        if self._access_log is not None:
            atexit.register(self._access_log.close)
        HeldBackTimer(loop, host.context.held_back)

    def make_server(self, handler: Handler, limits: Limits, ssl_context: object) -> BaseServer:
        context = self._host.context
        settings = context.config.settings
        server = BaseServer(
            handler,
            limits=limits,
            admission=self._make_admission(),
            emit=context.emit,
            account=self._host.row.account(),
            proxies=proxy_policy(settings.proxy_protocol, settings.proxy_from),
            ssl_context=ssl_context,  # type: ignore[arg-type]  # any object that asyncio takes
        )
        server.observers.on_ended = self._access_log
        return server

    def _make_admission(self) -> FleetAdmission:
        context = self._host.context
        refuses = context.config.settings.limits.at_limit == "refuse"
        return FleetAdmission(context.fork.scoreboard, self._host.row, self.loop, refuses, context.fork.inboxes)

    # --- servers ------------------------------------------------------------------------------------------------------

    def start(self, server: BaseServer, sockets: Sequence[socket.socket], owner: Releasable) -> None:
        """Accept from `sockets`, which listen, and report it.

        Their `owner` is kept until `stop`: a program may forget its server, which asyncio would keep, too.
        """
        self._owners[server] = owner
        tag = self._tag(sockets[0])
        with self._host.lock:
            others = [other for other in self._host.loops.values() if other is not self]
            self._host.loops[self.loop] = self
        if self._dispatcher is None and not any(other.shares for other in others):
            self._dispatcher = self._make_dispatcher()
        self._servers[tag] = server
        if self._dispatcher is not None:
            dispatcher = self._dispatcher
            server.offer = lambda sock: dispatcher.offer(sock, tag)
        for sock in sockets:
            server.add_socket(sock)
        self._publish()

    def _tag(self, sock: socket.socket) -> int:
        """Return a tag that a server on this socket has in every worker, also if it is not the first one."""
        tag = inode(sock) % (1 << _INODE_BITS)
        while tag in self._servers:
            tag += 1 << _INODE_BITS
        return tag % (1 << _BITS)

    def stop(self, server: BaseServer) -> None:
        """Stop accepting for one server; its connections go on."""
        self._owners.pop(server, None)
        tags = [tag for tag, each in self._servers.items() if each is server]
        for tag in tags:
            # What siblings have passed on is served first, and they pass nothing more that only this server takes.
            if self._dispatcher is not None:
                self._dispatcher.take_all()
            del self._servers[tag]
        if tags:
            self._publish()
            self._closed = {each for each in self._closed if each.connections} | {server}
        server.close()
        if not self._servers and self._dispatcher is not None:
            self._dispatcher.stop()
            self._dispatcher = None

    @property
    def shares(self) -> bool:
        return self._dispatcher is not None

    def connections(self) -> int:
        return sum(each.connections for each in (*self._servers.values(), *self._closed))

    def descriptors(self) -> list[int]:
        """Return the descriptors of the open connections."""
        servers = (*self._servers.values(), *self._closed)
        return [fd for server in servers for fd in server.connection_descriptors()]

    def _publish(self) -> None:
        """Tell the siblings which servers there are: connections are passed between workers that have the same."""
        generation = self._host.context.fork.generation
        self._host.row[WorkerStat.GENERATION] = hash((generation, *sorted(self._servers))) & ((1 << _BITS) - 1)

    def _make_dispatcher(self) -> Dispatcher:
        context = self._host.context
        return Dispatcher(
            self.loop,
            context.fork.inboxes,
            context.fork.slot,
            self._make_admission(),
            serve=self._adopt,
            back_off=self._back_off,
            queue=lambda: sum(each.queue_length() for each in self._servers.values()),
            emit=context.emit,
            may_take=self._host.is_accepting,
        )

    def _adopt(self, sock: socket.socket, address: object, tag: int) -> None:
        server = self._servers.get(tag)
        if server is None:
            # Another one on the same socket, as with SO_REUSEPORT: any of them may have it.
            same = [each for each in self._servers if (each ^ tag) % (1 << _INODE_BITS) == 0]
            server = self._servers[same[0]] if same else None
        if server is None:
            # It was closed a moment ago, or a hostile worker sent this.
            sock.close()
            self._host.row.reserve(-1)
            return
        server.adopt(sock, address)

    def _back_off(self, seconds: float) -> None:
        for server in self._servers.values():
            server.back_off(seconds)

    def abort(self) -> None:
        """Abort all connections, in the loop."""
        for server in (*self._servers.values(), *self._closed):
            server.abort_clients()

    def release(self) -> None:
        """Close the sockets after the loop was closed."""
        for owner in self._owners.values():
            owner.release()
        self._owners.clear()

    # --- the end ------------------------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Accept for the last time, in the loop; the servers stay, as the program knows them, with their connections.

        As a worker that serves a service does: see `worker/main.py`.
        """
        scoreboard, row = self._host.context.fork.scoreboard, self._host.row
        stopping = bool(scoreboard.settings[FleetSetting.STOPPING])
        servers = list(self._servers.values())
        for server in servers:
            server.offer = None
            if stopping:
                server.accept_waiting(MAX_WAITING)
        row[WorkerStat.STOPPED] = 1
        fence()
        if self._dispatcher is not None:
            self._dispatcher.stop()
            shared = bool(scoreboard.settings[FleetSetting.LISTENERS_SHARED])
            if stopping and scoreboard.all_stopped(row):
                self._dispatcher.empty_all()
                for server in servers if not shared else ():
                    self._shut_down(server)
            self._dispatcher = None
        for server in servers:
            server.close()

    def _shut_down(self, server: BaseServer) -> None:
        """Have the kernel refuse connections, because this is the last worker; one socket at a time."""
        elsewhere = bound_elsewhere(self._host)
        for sock in server.sockets:
            server.accept_waiting(MAX_WAITING, sock)
            if inode(sock) not in elsewhere:
                with contextlib.suppress(OSError):
                    raw_shutdown(sock.fileno())


def bound_elsewhere(host: Host) -> set[int]:
    """Return the inodes of the sockets that other processes accept from as well."""
    return {
        inode(sock)
        for listener in host.context.config.listeners
        if listener.bound_elsewhere
        for sock in listener.sockets()
    }


def raw_shutdown(fd: int) -> None:
    """Shut a held socket down; the method of `socket.socket` spares it."""
    with socket.socket(fileno=os.dup(fd)) as raw:
        super(socket.socket, raw).shutdown(socket.SHUT_RDWR)


def release_closed_loops(host: Host) -> None:
    """Close the sockets of servers whose loops were closed, as asyncio does: the program may bind them again."""
    for loop in [each for each in host.loops if each.is_closed()]:
        serving = host.loops.pop(loop)
        if isinstance(serving, LoopServing):
            serving.release()


def serving_of(host: Host, loop: asyncio.AbstractEventLoop) -> LoopServing:
    """Return what serves in the running `loop`, new for its first server."""
    found = host.loops.get(loop)
    return found if isinstance(found, LoopServing) else LoopServing(host, loop)
