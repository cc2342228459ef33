"""The TLS handshake throttle of one server: one step of one handshake in each loop iteration, and a bounded queue.

A step costs a signature, 0.5 ms in which nothing else runs. Without the throttle a flood of handshakes delays every
established connection by all of them, in each iteration. A handshake that waits for bytes from its client does not
count, otherwise a few silent clients would block every handshake.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .waiter import Waiter


class HandshakeThrottle:
    """Await `acquire_turn` before each step; start no handshake while the queue of `limit` steps `is_full`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int) -> None:
        self._loop = loop
        self._limit = limit
        self._queue: deque[Waiter] = deque()
        self.on_capacity: Callable[[], object] = lambda: None
        """Called when the queue is no longer full."""
        self._turn_taken = False
        """Whether a step was granted in this loop iteration."""

    def __len__(self) -> int:
        return len(self._queue)

    def is_full(self) -> bool:
        return len(self._queue) >= self._limit

    async def acquire_turn(self) -> None:
        """Wait for a turn. If cancelled, the turn goes to the next in the queue."""
        if not self._turn_taken:
            self._turn_taken = True
            self._loop.call_soon(self._next_turn)
            return
        waiter = Waiter(self._loop)
        self._queue.append(waiter)
        await waiter

    def _next_turn(self) -> None:
        was_full = self.is_full()
        while self._queue and not self._queue[0].waiting:
            self._queue.popleft()
        waiter = self._queue.popleft() if self._queue else None
        if was_full and not self.is_full():
            self.on_capacity()
        if waiter is None:
            self._turn_taken = False
        else:
            self._loop.call_soon(self._next_turn)
            waiter.wake()
