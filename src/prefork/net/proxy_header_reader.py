"""One connection whose proxy has not sent its PROXY header yet: read exactly the header, within a deadline.

What follows the header stays in the kernel, for the connection that takes the place of this one. What a header means
is decided in `core/proxy_protocol.py`, and which peers may send one in `base_server.py`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from ..core.account import CloseReason
from ..core.ended_connection import EndedConnection
from ..core.proxy_protocol import LENGTH_LIMIT, Accept, ProxyHeader, ProxyHeaderError, scan
from ..errors import reason_of
from ..events import ConnectionLost, ConnectionRefused, Event, ProxyHeaderMalformed, ProxyHeaderMissing
from ..text import escape_ascii, format_address
from .channel import DONTWAIT
from .deadlines import Deadline
from .handlers import Handler
from .open_connection import OpenConnection
from .poller import READ
from .server_state import ServerState

#: The usual cause if not even the first byte comes, and its cure.
_HELD_BACK = (
    "; does a balancer hold it back until its client speaks? AWS NLB: ask for the target group attribute "
    "proxy_protocol_v2.client_to_server.header_placement on_first_ack instead of on_first_ack_with_payload"
)


class ProxyHeaderReader:
    """A connection from its accept until its PROXY header is complete, or until it ends without one.

    Owns `sock`, which `release` gives away. It sends nothing, and takes nothing but the header from the kernel. `done`
    is called once: with the header, or with None when the socket is closed. `local` is the local address, if something
    observes the server.
    """

    __slots__ = (
        "_accept",
        "_address",
        "_began",
        "_data",
        "_done",
        "_fd",
        "_local",
        "_number",
        "_reason",
        "_sock",
        "_state",
        "_watched",
    )

    task: asyncio.Task[Any] | None = None

    def __init__(
        self,
        sock: socket.socket,
        address: object,
        local: object,
        state: ServerState,
        accept: Accept,
        done: Callable[[ProxyHeaderReader, ProxyHeader | None], None],
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._address = address
        self._local = local
        self._state = state
        self._accept = accept
        self._done = done
        self._number = next(state.ids)
        self._began = state.loop.time()
        self._data = b""
        """The beginning of the header, which was taken from the kernel."""
        self._reason = CloseReason.DONE
        self._watched = False
        """The poller reports the socket, and the deadline is set."""

    def start(self, state: ServerState, handler: Handler, ssl_context: ssl.SSLContext | None) -> None:
        # Most headers are there already, and need neither the poller nor a deadline.
        self._on_ready(READ)

    def release(self) -> tuple[socket.socket, object]:
        """Give the socket and the proxy's address to the caller, because the header is read."""
        self._unwatch()
        self._fd = -1
        return self._sock, self._address

    # --- reading ------------------------------------------------------------------------------------------------------

    def _on_ready(self, mask: int) -> None:
        try:
            header = self._read()
        except ProxyHeaderError as exc:
            self._end(CloseReason.PROXY_MALFORMED, ProxyHeaderMalformed(self._peer(), str(exc)))
        except EOFError as exc:
            # A health check that only connects: nothing is wrong, and it would be logged every second.
            self._end(CloseReason.DONE, ConnectionLost(self._peer(), str(exc)))
        except OSError as exc:
            self._end(CloseReason.PEER_RESET, ConnectionLost(self._peer(), escape_ascii(exc.strerror or str(exc))))
        else:
            if header is None:
                self._wait()
            else:
                self._done(self, header)

    def _read(self) -> ProxyHeader | None:
        """Return the header, which was taken from the kernel; None while it is incomplete.

        Raises ProxyHeaderError for what is none, EOFError if the peer ended before its first byte, OSError.
        """
        # Until the kernel has no more: an edge is not repeated, and a unix socket may give less than it has.
        while True:
            try:
                data = self._sock.recv(LENGTH_LIMIT, socket.MSG_PEEK | DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return None
            if not data:
                if self._data:
                    raise ProxyHeaderError("the connection ended within the header")
                raise EOFError("it ended before a PROXY header")
            header = scan(self._data + data, self._accept)
            taken = data if header is None else data[: header.length - len(self._data)]
            self._take(len(taken))
            if header is not None:
                return header
            self._data += taken

    def _take(self, size: int) -> None:
        """Take bytes from the kernel that a look has found there."""
        while size:
            taken = len(self._sock.recv(size, DONTWAIT))
            if not taken:
                raise ConnectionResetError("Connection lost")
            size -= taken

    def _wait(self) -> None:
        state = self._state
        if not self._watched:
            try:
                state.poller.add(self._fd, self)
            except OSError as exc:
                self._end(CloseReason.DESCRIPTORS, ConnectionRefused(self._peer(), reason_of(exc)))
                return
            self._watched = True
            state.deadlines.set(self, Deadline.PROXY, state.limits.proxy_timeout)
        state.poller.arm(self._fd, READ)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._state.deadlines.clear(self, Deadline.PROXY)
            # As if duplicated: the socket stays open, for the connection that is registered next.
            self._state.poller.remove(self._fd, self, True)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end(self, reason: CloseReason, event: Event | None = None) -> None:
        """Close the socket without a header (idempotent)."""
        if self._fd < 0:
            return
        self._unwatch()
        self._fd = -1
        self._reason = reason
        self._sock.close()
        self._state.account.transferred(len(self._data), 0)
        if event is not None:
            self._state.emit(event)
        self._done(self, None)

    def _on_deadline(self, deadline: Deadline) -> None:
        # Without a byte it is not the proxy that is slow.
        hint = "" if self._data else _HELD_BACK
        event = ProxyHeaderMissing(self._peer(), self._state.limits.proxy_timeout, hint)
        self._end(CloseReason.PROXY_TIMEOUT, event)

    def close(self) -> None:
        self._end(CloseReason.DRAIN)

    def abort(self, reason: CloseReason) -> None:
        self._end(reason)

    def drain(self) -> None:
        # What was accepted is served, and there is no handler yet that could be told.
        pass

    # --- facts --------------------------------------------------------------------------------------------------------

    def _peer(self) -> str:
        return escape_ascii(format_address(self._address))

    def fileno(self) -> int:
        return self._fd

    def describe(self, uses_tls: bool) -> OpenConnection:
        return OpenConnection(self._number, self._fd, self._address, "proxy", self._began, 0, "")

    def describe_end(self, local: object, seconds: float, reason: CloseReason) -> EndedConnection:
        # Number 0, as of a refused one: no observer was told that it was opened.
        return EndedConnection(0, self._address, self._local, seconds, len(self._data), 0, "", reason)

    def close_reason(self) -> CloseReason:
        return self._reason

    def time_open(self) -> float:
        return self._state.loop.time() - self._began

    def was_silent(self) -> bool:
        return not self._data
