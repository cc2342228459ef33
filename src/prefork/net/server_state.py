"""What all streams of one server share, handed to each as one object.

A plain holder, which also starts the connections' tasks: the server makes it and closes it. No decisions live here.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import sys
from collections.abc import Coroutine
from typing import Any, Protocol

from ..config import Limits
from ..events import Emit
from ..system import fork_count, memory
from .deadlines import Deadlines
from .handshake_throttle import HandshakeThrottle
from .poller import Poller, make_poller

_EAGER = functools.partial(asyncio.Task, eager_start=True) if sys.version_info >= (3, 12) else None


class HeldBack(Protocol):
    """A connection whose peer does not read as fast as it is written to. Private, because handlers see streams."""

    def _buffered_bytes(self) -> int:
        """Return the memory that its unsent bytes keep."""

    def _abort_for_budget(self, total: int, limit: int) -> None:
        """Abort it, because all connections together keep `total` bytes."""


class ServerState:
    """One server's loop, poller, deadlines, limits and drain signal, and what its connections have unsent in all."""

    __slots__ = (
        "_forks",
        "context",
        "deadlines",
        "drain_asked",
        "emit",
        "held",
        "held_back",
        "ids",
        "limits",
        "loop",
        "poller",
        "turnstile",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limits: Limits, emit: Emit, poller: Poller | None = None
    ) -> None:
        memory.prime_malloc()
        self._forks = fork_count.made()
        self.loop = loop
        self.limits = limits
        self.emit = emit
        self.context = contextvars.copy_context()
        """For what is nobody's own."""
        self.poller = make_poller(loop) if poller is None else poller
        self.deadlines = Deadlines(loop)
        self.drain_asked = asyncio.Event()
        """Set once, when the worker wants to stop."""
        self.ids = itertools.count(1)
        self.turnstile = HandshakeThrottle(loop, limits.max_handshakes)
        self.held = 0
        """Bytes that are kept as the kernel has not taken them, of all connections."""
        self.held_back: set[HeldBack] = set()
        """The connections that have some."""

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Make a task in a context of its own, and run it up to its first wait where that can be: eager tasks (Python
        3.12) save a turn of the loop for each connection. A factory that the service has set makes its own."""
        # Not the context of whoever has made room for it: a connection would see another one's variables.
        context = self.context.copy()
        if _EAGER and self.loop.get_task_factory() is None:
            return _EAGER(coroutine, loop=self.loop, context=context)
        return context.run(self.loop.create_task, coroutine)

    @property
    def forked(self) -> bool:
        """Whether a child that a handler has forked may hold any connection besides us."""
        return fork_count.made() != self._forks

    def shed(self) -> None:
        """More is unsent than may be: the connection that has most of it goes, until that is mended."""
        while self.held > self.limits.max_unsent and self.held_back:
            max(self.held_back, key=lambda each: each._buffered_bytes())._abort_for_budget(
                self.held, self.limits.max_unsent
            )

    def close(self) -> None:
        """Close the poller and forget the deadlines. All streams must be closed."""
        self.deadlines.close()
        self.poller.close()
