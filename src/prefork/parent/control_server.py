"""The control socket, served without a loop of its own: conversations that are read, answered and bounded.

Knows bytes and deadlines; what a request leads to is the supervisor's business.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

from ..core.control_protocol import REQUEST_LIMIT, BadRequest, Request, decode_request, encode_reply
from ..system.control_client import may_control
from ..system.processes import RESOURCE_ERRNOS

#: Conversations at once, beside those that wait for what they have asked for; further clients wait in the kernel's
#: queue.
MOST = 16
#: Seconds until the next attempt where there is no descriptor left to accept with.
REST = 0.5
#: Seconds that a client may take to say what it wants, and to take the answer.
PATIENCE = 5.0


class ControlConnection:
    """One client: a request, perhaps a while, a reply."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.sock = sock
        self.heard = b""
        self.unsent = b""
        self.waiting = False
        """Its request is being dealt with; there is no deadline for that."""
        self.deadline = now + PATIENCE

    def close(self) -> None:
        """End it."""
        self.sock.close()


class ControlSocket:
    """Serves `listener`, which is closed at the end. `own` is told of everything that a child must not hold."""

    def __init__(self, listener: socket.socket, own: Callable[[Any], object]) -> None:
        self._listener = listener
        self._own = own
        self.listening = True
        """Whether new conversations are taken. Another supervisor may hold the same socket."""
        self._conversations: dict[int, ControlConnection] = {}
        self._rest_until = 0.0
        own(listener)

    def interests(self, now: float) -> dict[int, int]:
        """What to poll for: descriptors and events."""
        wanted = {fd: select.POLLOUT if each.unsent else select.POLLIN for fd, each in self._conversations.items()}
        if self._accepts() and now >= self._rest_until:
            wanted[self._listener.fileno()] = select.POLLIN
        return wanted

    def next_due(self, now: float) -> float | None:
        """When a conversation takes too long, or a rest is over."""
        times = [each.deadline for each in self._conversations.values() if not each.waiting]
        if self._accepts() and now < self._rest_until:
            times.append(self._rest_until)
        return min(times, default=None)

    def _accepts(self) -> bool:
        return self.listening and sum(not each.waiting for each in self._conversations.values()) < MOST

    def take(self, ready: set[int], now: float) -> list[tuple[ControlConnection, Request]]:
        """The requests that are complete; `ready` are descriptors that a poll named."""
        if self.listening and self._listener.fileno() in ready:
            self._accept(now)
        requests = []
        for fd, each in list(self._conversations.items()):
            if fd in ready and each.unsent:
                self._send(each)
            elif fd in ready:
                request = self._hear(each)
                if request is not None:
                    requests.append((each, request))
            if not each.waiting and now >= each.deadline:
                self._end(each)
        return requests

    def reply(self, conversation: ControlConnection, value: dict[str, Any]) -> None:
        """Answer; the conversation ends when the answer has been taken."""
        if conversation.sock.fileno() < 0:
            return
        conversation.waiting = False
        conversation.unsent = encode_reply(value)
        self._send(conversation)

    def close(self) -> None:
        """End all conversations, and listen no more."""
        for each in list(self._conversations.values()):
            self._end(each)
        self._listener.close()

    def _accept(self, now: float) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno in RESOURCE_ERRNOS and not isinstance(exc, BlockingIOError):
                # It stays readable: polled for, it would keep this process busy with nothing.
                self._rest_until = now + REST
            return
        try:
            sock.setblocking(False)
            allowed = may_control(sock)
        except OSError:
            allowed = False
        if not allowed:
            sock.close()
            return
        conversation = ControlConnection(sock, now)
        self._own(conversation)
        self._conversations[sock.fileno()] = conversation

    def _hear(self, conversation: ControlConnection) -> Request | None:
        try:
            data = conversation.sock.recv(REQUEST_LIMIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data or conversation.waiting:
            # It has left, or says more than it was asked to.
            self._end(conversation)
            return None
        conversation.heard += data
        line, newline, _ = conversation.heard.partition(b"\n")
        if not newline:
            if len(line) > REQUEST_LIMIT:
                self.reply(conversation, {"ok": False, "error": "the request is too long"})
            return None
        try:
            request = decode_request(line)
        except BadRequest as exc:
            self.reply(conversation, {"ok": False, "error": str(exc)})
            return None
        conversation.waiting = True
        return request

    def _send(self, conversation: ControlConnection) -> None:
        try:
            sent = conversation.sock.send(conversation.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._end(conversation)
            return
        conversation.unsent = conversation.unsent[sent:]
        if not conversation.unsent:
            self._end(conversation)

    def _end(self, conversation: ControlConnection) -> None:
        self._conversations.pop(conversation.sock.fileno(), None)
        conversation.close()
