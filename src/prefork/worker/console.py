"""A worker's console: it tells clients in a terminal which connections it has, and ends those that they name.

The clients' connections come from the supervisor (`system/console_channel.py`). So do files that it hands out, which
are passed on. What clients say is in `core/console_protocol.py`. Which tasks wait for what is in `stacks.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from ..core.account import CloseReason
from ..core.console_protocol import (
    REQUEST_LIMIT,
    ConsoleRequest,
    WorkerRow,
    decode_request,
    encode_end,
    encode_rows,
    encode_stack,
)
from ..core.kicking import PeerFilter
from ..events import ConnectionsKicked, Emit
from ..net.base_server import BaseServer
from ..net.connection import Connection
from ..system.console_channel import receive
from ..system.descriptors import Descriptor
from ..text import escape_ascii, format_address
from .stacks import TaskStacks, thread_stacks

#: Clients at a time; further ones are closed at once.
MAX_CLIENTS = 8
#: Seconds that a client has for its next request, and for taking a part of an answer.
IDLE_TIMEOUT = 30.0
SEND_TIMEOUT = 5.0
#: Seconds until clients are looked for again, after no descriptor was free for one.
RETRY = 0.5
#: Connections that are looked at in one turn of the loop, by all clients together; 0.6 ms.
BATCH = 100
STACKS_BATCH = 25
#: Pid, uid and gid of the peer of a unix socket (unix(7), struct ucred).
_CREDENTIALS = struct.Struct("=iII")


class Console:
    """Serves the clients that arrive on `channel`, from its construction until `close`. Owns the channel's end.

    `on_handout` gets each file that is handed out, and owns it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: socket.socket,
        server: BaseServer,
        emit: Emit,
        on_handout: Callable[[Descriptor], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._on_handout = on_handout
        self._server = server
        self._emit = emit
        self._clients: dict[asyncio.Task[None], socket.socket] = {}
        self._turn = asyncio.Lock()
        loop.add_reader(channel.fileno(), self._accept)

    def close(self) -> None:
        """Serve nothing more, and close what is open (idempotent)."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        for task in list(self._clients):
            task.cancel()

    def _accept(self) -> None:
        try:
            client = receive(self._channel)
        except (EOFError, OSError):
            # The supervisor is gone, or no descriptor is free, with which the channel would report without end.
            self._loop.remove_reader(self._channel.fileno())
            if self._channel.fileno() >= 0:
                self._loop.call_later(RETRY, self._watch_again)
            return
        except ValueError:
            return
        if client is None:
            return
        if isinstance(client, Descriptor):
            self._on_handout(client)
            return
        if len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        # Not by the loop's task factory, which is the service's.
        task = asyncio.Task(self._serve(client), loop=self._loop, name="prefork console")
        self._clients[task] = client
        task.add_done_callback(self._ended)

    def _watch_again(self) -> None:
        if self._channel.fileno() >= 0:
            self._loop.add_reader(self._channel.fileno(), self._accept)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task).close()

    async def _serve(self, client: socket.socket) -> None:
        # ConnectionError: the client has left. TimeoutError: it neither asks nor reads.
        with contextlib.suppress(OSError, TimeoutError):
            received = bytearray()
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT):
                    data = await self._loop.sock_recv(client, REQUEST_LIMIT)
                received += data
                if not data or len(received) > REQUEST_LIMIT:
                    return
                while b"\n" in received:
                    line, _, rest = bytes(received).partition(b"\n")
                    received[:] = rest
                    await self._answer(client, line)

    async def _answer(self, client: socket.socket, line: bytes) -> None:
        try:
            request = decode_request(line)
            filter_ = PeerFilter(request.peers)
        except ValueError as exc:
            await self._send(client, encode_end(error=escape_ascii(exc)))
            return
        match request.command:
            case "connections":
                await self._tell_connections(client)
            case "kick":
                await self._kick(client, request, filter_)
            case _:
                await self._tell_stacks(client)

    async def _tell_connections(self, client: socket.socket) -> None:
        connections = self._server.open_connections()
        uses_tls = self._server.uses_tls
        for start in range(0, len(connections), BATCH):
            async with self._turn:
                now = self._loop.time()
                rows = [_row(each, uses_tls, now) for each in connections[start : start + BATCH]]
                line = encode_rows(rows)
                # Everything else has its turn before the next batch of any client.
                await asyncio.sleep(0)
            await self._send(client, line)
        await self._send(client, encode_end(connections=len(connections)))

    async def _kick(self, client: socket.socket, request: ConsoleRequest, peers: PeerFilter) -> None:
        connections = self._server.open_connections()
        uses_tls, numbers = self._server.uses_tls, frozenset(request.numbers)
        kicked, what = 0, ", ".join(request.peers)
        batch = max(1, BATCH // max(1, len(request.peers)))
        # So that it is not taken for one that hangs.
        await self._send(client, encode_rows(()))
        for start in range(0, len(connections), batch):
            async with self._turn:
                for connection in connections[start : start + batch]:
                    found = connection.describe(uses_tls)
                    if found.fd >= 0 and (found.number in numbers or peers.matches(found.address)):
                        connection.abort(CloseReason.KICKED)
                        kicked += 1
                        what = what or format_address(found.address)
                await asyncio.sleep(0)
        if kicked:
            self._emit(ConnectionsKicked(kicked, escape_ascii(what), request.by))
        await self._send(client, encode_end(kicked=kicked))

    async def _tell_stacks(self, client: socket.socket) -> None:
        tasks: list[asyncio.Task[Any]] = [each for each in asyncio.all_tasks(self._loop) if each not in self._clients]
        peers = {each.task: each for each in self._server.open_connections()}
        found = TaskStacks()
        # Otherwise a worker with thousands of tasks, which take many turns of the loop, is taken for one that hangs.
        await self._send(client, encode_rows(()))
        for start in range(0, len(tasks), STACKS_BATCH):
            async with self._turn:
                for task in tasks[start : start + STACKS_BATCH]:
                    connection = peers.get(task)
                    peer = "" if connection is None else format_address(connection.describe(False).address)
                    # A service may have tasks of a class of its own, whose methods raise what they like.
                    with contextlib.suppress(Exception):
                        found.add(task, peer)
                await asyncio.sleep(0)
        for stack in [*found.largest(), *thread_stacks()]:
            await self._send(client, encode_stack(stack))
        await self._send(client, encode_end(tasks=len(tasks), stacks=len(found)))

    async def _send(self, client: socket.socket, line: bytes) -> None:
        async with asyncio.timeout(SEND_TIMEOUT):
            await self._loop.sock_sendall(client, line)


def _row(connection: Connection, uses_tls: bool, now: float) -> WorkerRow:
    found = connection.describe(uses_tls)
    inode, peer = 0, format_address(found.address)
    # It may have closed since the list was made, and its number may be another file's soon, but not before the next
    # turn of the loop.
    with contextlib.suppress(OSError):
        if found.fd >= 0:
            inode = os.fstat(found.fd).st_ino
            if found.proxy is None and not isinstance(found.address, tuple):
                peer = _name_unix_peer(found.fd, peer)
    age = round(max(0.0, now - found.accepted_at), 3)
    proxy = "" if found.proxy is None else format_address(found.proxy)
    return WorkerRow(found.number, inode, peer, found.phase, age, found.unsent, found.tls, proxy)


def _name_unix_peer(fd: int, peer: str) -> str:
    """Return what the kernel says of a unix peer, which mostly has no name: its process and its user."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(data)
    return f"{peer} pid={pid} uid={uid}"
