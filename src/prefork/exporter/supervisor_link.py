"""Ask the supervisor for its status, once for all requests that wait for it, and at a bounded rate.

Knows neither HTTP nor what the numbers mean.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.control_protocol import Request, decode_reply, encode_request

#: Minimum seconds between two requests to the supervisor, however many clients wait.
MIN_INTERVAL = 0.1
#: Multiple of the time that the last answer took: the status of a large fleet takes up to 5 % of the supervisor's time.
#: The interval has a bound, because a supervisor that was stopped for a minute answers at once afterwards.
REST = 19
MAX_INTERVAL = 1.0
#: Seconds for which the last status is true enough for those that waited for one when the supervisor handed over.
MAX_AGE = 5.0
#: Maximum length of an answer, in bytes: 4,096 workers have some 2 KiB each.
MAX_REPLY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the supervisor said at one moment."""

    status: dict[str, Any]
    at: float
    """The time of day of the answer, in seconds since the epoch."""
    rendered: dict[str, bytes] = field(default_factory=dict)
    """What was made of it, by content type, because many clients ask for the same."""


class Snapshots:
    """Answers each `get` by a status that was asked for after the call. `gone` is called when the supervisor is gone.

    One request is under way at a time: a supervisor that does not answer is not asked again.
    """

    def __init__(self, gone: Callable[[], object]) -> None:
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._link: asyncio.Transport | None = None
        self._next: asyncio.Future[Snapshot] | None = None
        """What those wait for that have come since the last request."""
        self._asked: asyncio.Future[Snapshot] | None = None
        """What those wait for that the last request is for; None: it is answered."""
        self._asked_at = 0.0
        self._ask_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._last: Snapshot | None = None
        self._last_at = 0.0
        self._lost = False

    async def connect(self, link: socket.socket) -> None:
        """Use `link`, the connection to the supervisor, and own it until `close`."""
        self._link, _ = await self._loop.create_connection(lambda: _Link(self._answered, self._lose), sock=link)

    async def get(self, timeout: float) -> Snapshot:
        """Return the status of a moment after this call. Raises TimeoutError after `timeout` seconds.

        When the supervisor is gone, as after an upgrade, return the last one, or raise TimeoutError at once. Cancelling
        one call does not concern the others.
        """
        if self._lost:
            return self._recent()
        if self._next is None:
            self._next = self._loop.create_future()
            self._schedule()
        async with asyncio.timeout(timeout):
            return await asyncio.shield(self._next)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._link is not None:
            self._link.close()

    def _schedule(self) -> None:
        if self._asked is None and self._next is not None and self._timer is None:
            self._timer = self._loop.call_at(self._ask_at, self._ask)

    def _ask(self) -> None:
        self._timer = None
        self._asked, self._next = self._next, None
        self._asked_at = self._loop.time()
        if self._link is not None:
            self._link.write(encode_request(Request("status")))

    def _answered(self, line: bytes) -> None:
        asked, self._asked = self._asked, None
        try:
            snapshot = Snapshot(decode_reply(line), time.time())
        except ValueError:
            self._lose()
            return
        now = self._loop.time()
        self._last, self._last_at = snapshot, now
        self._ask_at = now + min(max(MIN_INTERVAL, REST * (now - self._asked_at)), MAX_INTERVAL)
        if asked is not None and not asked.done():
            asked.set_result(snapshot)
        self._schedule()

    def _lose(self) -> None:
        """Answer those that wait, because nothing else will."""
        self._lost = True
        for waiting in (self._asked, self._next):
            if waiting is not None and not waiting.done():
                try:
                    waiting.set_result(self._recent())
                except TimeoutError as exc:
                    waiting.set_exception(exc)
                    # Perhaps all that waited have given up; then nothing takes it.
                    waiting.exception()
        self._gone()

    def _recent(self) -> Snapshot:
        if self._last is None or self._loop.time() - self._last_at > MAX_AGE:
            raise TimeoutError("the supervisor is gone")
        return self._last


class _Link(asyncio.Protocol):
    """Receives lines, and notices the end of the other process."""

    def __init__(self, line: Callable[[bytes], object], gone: Callable[[], object]) -> None:
        self._line = line
        self._gone = gone
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > MAX_REPLY:
            self._gone()
        if data.endswith(b"\n"):
            line = bytes(self._received)
            self._received.clear()
            self._line(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()
