"""TLS handshakes of one server: one step of one of them in each turn of the loop, and so many waiting for theirs.

A step costs a signature, half a millisecond in which nothing else runs. Without the turnstile a flood of handshakes
makes every established connection wait for all of them in each round. A peer that has to speak holds no place: a few
that connect and are silent would keep everybody out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .waiter import Waiter


class HandshakeThrottle:
    """`most` handshakes may wait; `full` says so, and `acquire_turn` is awaited before each step."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._queue: deque[Waiter] = deque()
        self.on_room: Callable[[], object] = lambda: None
        """Called when it was full and is no longer."""
        self._taken = False
        """Whether somebody has passed in this turn of the loop."""

    def full(self) -> bool:
        """Whether no further handshake should begin."""
        return len(self._queue) >= self._most

    async def acquire_turn(self) -> None:
        """Wait for a turn of one's own. Cancelling it gives the turn to the next."""
        if not self._taken:
            self._taken = True
            self._loop.call_soon(self._next)
            return
        waiter = Waiter(self._loop)
        self._queue.append(waiter)
        await waiter

    def _next(self) -> None:
        full = self.full()
        while self._queue and not self._queue[0].waiting:
            self._queue.popleft()
        waiter = self._queue.popleft() if self._queue else None
        if full and not self.full():
            self.on_room()
        if waiter is None:
            self._taken = False
        else:
            self._loop.call_soon(self._next)
            waiter.wake()
