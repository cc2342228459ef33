"""A running server as its clients reach it: the supervisor by the control socket, and each worker by its console.

Bytes and deadlines; what the answers mean is in `connections.py` and `stacks.py`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from ..core.console_protocol import (
    ANSWER_LIMIT,
    LINE_LIMIT,
    MAX_ROWS,
    ConsoleRequest,
    Stack,
    WorkerRow,
    decode_line,
    encode_request,
)
from ..core.control_protocol import Request, decode_reply
from ..core.control_protocol import encode_request as encode_control_request
from ..errors import ServiceError
from ..system import control_client
from ..text import escape_ascii

#: Seconds that a worker has for the first byte of an answer. A loop that nothing blocks turns in 1 ms.
FIRST_TIMEOUT = 0.08
#: Seconds for a whole answer. It takes 0.3 s of CPU time for 50,000 connections, between which the worker serves them.
ANSWER_TIMEOUT = 5.0
#: Seconds for reading what has arrived already.
READ_TIME = 0.005
#: Seconds that the supervisor has.
CONTROL_TIMEOUT = 10.0
_STACKS = 1000


def ask_supervisor(control: str, request: Request, descriptors: list[int] | None = None) -> dict[str, Any]:
    """Return the supervisor's reply. Raises ConfigError if none comes, ServiceError if it rejects the request.

    The caller owns what is added to `descriptors`, also on an error.
    """
    line = control_client.request(control, encode_control_request(request), CONTROL_TIMEOUT, descriptors)
    try:
        reply = decode_reply(line)
    except ValueError:
        raise ServiceError(f"--control {escape_ascii(control)}: not a prefork control socket") from None
    if not reply["ok"]:
        raise ServiceError(escape_ascii(reply.get("error", "the server rejected the request")))
    return reply


@dataclass(eq=False)
class WorkerLink:
    """One worker, and the connection to its console if there is one."""

    slot: int
    pid: int
    generation: int
    state: str
    has_console: bool
    """False: it runs a program, of which only the kernel tells."""
    sock: socket.socket | None

    @property
    def is_asked(self) -> bool:
        """Whether it should answer: it has a console, and a loop that runs."""
        return self.has_console and self.state not in ("forking", "starting")


@dataclass
class Answer:
    """What one worker has answered until now. It is a worker's word: checked and bounded, and perhaps a lie."""

    rows: list[WorkerRow] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)
    end: dict[str, Any] | None = None
    """The last line; None if the worker did not come to its end in time."""
    size: int = 0
    error: str = ""
    """Why the answer was given up: what came was not one."""
    _rest: bytes = b""

    @property
    def is_whole(self) -> bool:
        return self.end is not None and not self.error

    def feed(self, data: bytes) -> bool:
        """Take more bytes. Return whether the answer is over."""
        self.size += len(data)
        if not data or self.size > ANSWER_LIMIT:
            self.error = "it sends too much" if data else "it closed the connection"
            return True
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._add(decode_line(line))
            if len(self._rest) > LINE_LIMIT:
                raise ValueError("a line is too long")
        except ValueError as exc:
            self.error = escape_ascii(exc)
        return bool(self.error) or self.end is not None

    def _add(self, value: list[WorkerRow] | Stack | dict[str, Any]) -> None:
        if isinstance(value, Stack):
            self.stacks.append(value)
        elif isinstance(value, dict):
            self.end = value
            self.error = escape_ascii(value.get("error", ""))
        else:
            self.rows += value
        if len(self.rows) > MAX_ROWS or len(self.stacks) > _STACKS:
            raise ValueError("it names more than a process can have")


class Attachment:
    """Connections to the consoles of all workers of one server, until it is closed, by `with`.

    Raises ConfigError if no server replies, ServiceError if it rejects the request.
    """

    def __init__(self, control: str) -> None:
        descriptors: list[int] = []
        try:
            reply = ask_supervisor(control, Request("attach"), descriptors)
        finally:
            sockets = [socket.socket(fileno=fd) for fd in descriptors]
        self.workers: list[WorkerLink] = []
        self.listeners: list[str] = [str(each) for each in reply["listeners"]]
        self.predecessor: int | None = reply.get("predecessor")
        """The supervisor that drains since an upgrade; its workers cannot be asked."""
        for each in reply["workers"]:
            sock = sockets.pop(0) if each["attached"] and sockets else None
            names = (each["slot"], each["pid"], each["generation"], each["state"], each["console"])
            self.workers.append(WorkerLink(*names, sock))
        for each in self.workers:
            if each.sock is not None:
                each.sock.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for each in self.workers:
            if each.sock is not None:
                each.sock.close()
                each.sock = None

    def ask(
        self,
        request: ConsoleRequest,
        workers: Iterable[WorkerLink] | None = None,
        first: float = FIRST_TIMEOUT,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> dict[WorkerLink, Answer]:
        """Ask workers, by default all, as `ask_workers` does."""
        return ask_workers(self.workers if workers is None else workers, request, first, meanwhile=meanwhile)


def ask_workers(
    workers: Iterable[WorkerLink],
    request: ConsoleRequest,
    first: float = FIRST_TIMEOUT,
    total: float = ANSWER_TIMEOUT,
    meanwhile: Callable[[], object] = lambda: None,
) -> dict[WorkerLink, Answer]:
    """Ask workers, and return the answers of those that have begun one within `first` seconds.

    Wait `total` seconds at the most. The connection to a worker that does not finish is closed, because the rest of its
    answer would be taken for the next one. `meanwhile` is called when all were asked, and its time counts.
    """
    asked = [each for each in workers if _send(each, request)]
    answers: dict[WorkerLink, Answer] = {}
    waiting = {each.sock.fileno(): each for each in asked if each.sock is not None}
    start = time.monotonic()
    meanwhile()
    # What has arrived meanwhile is read, however long that took.
    first = max(first, time.monotonic() - start + READ_TIME)
    while waiting:
        passed = time.monotonic() - start
        if passed >= first:
            waiting = {fd: each for fd, each in waiting.items() if each in answers}
        if not waiting or passed >= total:
            break
        for fd in _readable(waiting, (first if passed < first else total) - passed):
            if _receive(waiting[fd], answers):
                del waiting[fd]
    for each in asked:
        if each not in answers or not answers[each].is_whole:
            _drop(each)
    return answers


def _send(worker: WorkerLink, request: ConsoleRequest) -> bool:
    if worker.sock is None:
        return False
    try:
        line = encode_request(request)
        if worker.sock.send(line) == len(line):
            return True
    except OSError:
        pass
    _drop(worker)
    return False


def _drop(worker: WorkerLink) -> None:
    if worker.sock is not None:
        worker.sock.close()
        worker.sock = None


def _readable(waiting: Iterable[int], seconds: float) -> list[int]:
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(seconds * 1000 + 1)]


def _receive(worker: WorkerLink, answers: dict[WorkerLink, Answer]) -> bool:
    """Read once from a worker. Return whether its answer is over."""
    data = b""
    with contextlib.suppress(OSError):
        if worker.sock is not None:
            data = worker.sock.recv(LINE_LIMIT)
    return answers.setdefault(worker, Answer()).feed(data)
