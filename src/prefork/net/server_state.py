"""What all connections of one server share: its loop, poller, deadlines, limits, and the budget of unsent bytes.

The server makes and closes it. Decisions do not belong here, except which connection exceeds the common budget.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from ..config import Limits
from ..core.account import Account, local_account
from ..events import Emit
from ..implementation import native
from ..system import fork_count, memory
from .deadlines import Deadlines
from .handshake_throttle import HandshakeThrottle
from .poller import Poller, make_poller
from .protocol_failures import Failed, ProtocolFailures

T = TypeVar("T")


def _task_type() -> Callable[..., asyncio.Task[Any]] | None:
    """Return what makes a task that starts at once; None: the loop's own way, where tasks start later."""
    if native is not None:
        return functools.partial(native.Task, eager_start=True)
    return functools.partial(asyncio.Task, eager_start=True) if sys.version_info >= (3, 12) else None


_EAGER = _task_type()


class Backlogged(Protocol):
    """A connection with unsent bytes. Its methods are private, because handlers see streams."""

    def _buffered_bytes(self) -> int: ...
    def _abort_for_budget(self, total: int, limit: int) -> None: ...


class ServerState:
    """The shared state of one server. Made in the running loop; closed when all of its streams are."""

    __slots__ = (
        "_forks",
        "account",
        "backlogged",
        "buffered_bytes",
        "callback_context",
        "deadlines",
        "draining",
        "emit",
        "handshakes",
        "ids",
        "limits",
        "loop",
        "poller",
        "protocol_failures",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        emit: Emit,
        poller: Poller | None = None,
        account: Account | None = None,
    ) -> None:
        memory.prime_malloc()
        self._forks = fork_count.fork_count()
        self.loop = loop
        self.limits = limits
        self.emit = emit
        self.callback_context = contextvars.copy_context()
        """The context of callbacks that belong to no connection."""
        self.account = local_account() if account is None else account
        self.poller = make_poller(loop, limits, self.account.traffic) if poller is None else poller
        self.deadlines = Deadlines(loop)
        self.draining = asyncio.Event()
        """Set once, when the server begins to drain."""
        self.ids = itertools.count(1)
        self.handshakes = HandshakeThrottle(loop, limits.max_handshakes)
        self.protocol_failures: ProtocolFailures | None = None
        """Made with the first connection of a protocol."""
        self.buffered_bytes = 0
        """Unsent bytes of all connections."""
        self.backlogged: set[Backlogged] = set()
        """The connections that have some."""

    def start_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return a task in a context of its own, already run up to its first wait if possible.

        Eager tasks (Python 3.12) save a loop iteration for each connection. A task factory that the service has set is
        used instead.
        """
        # A copy of the server's context. In that of the running callback, which may be the end of another connection,
        # this one would see the context variables of the other.
        context = self.callback_context.copy()
        if _EAGER and self.loop.get_task_factory() is None:
            return _EAGER(coroutine, loop=self.loop, context=context)
        return context.run(self.loop.create_task, coroutine)

    @property
    def forked(self) -> bool:
        """Whether a child that a handler has forked may hold a copy of any connection."""
        return fork_count.fork_count() != self._forks

    def abort_largest(self) -> None:
        """Abort the connections with the most unsent bytes until the total is within `max_unsent`."""
        while self.buffered_bytes > self.limits.max_unsent and self.backlogged:
            largest = max(self.backlogged, key=lambda each: each._buffered_bytes())
            largest._abort_for_budget(self.buffered_bytes, self.limits.max_unsent)

    def on_protocol_failure(self, fd: int, failed: Failed | None) -> None:
        """Have `failed` called when a callback of the protocol on this descriptor fails; None: no more."""
        if self.protocol_failures is None:
            self.protocol_failures = ProtocolFailures(self.loop)
        if failed is None:
            self.protocol_failures.by_descriptor.pop(fd, None)
        else:
            self.protocol_failures.by_descriptor[fd] = failed

    def close(self) -> None:
        if self.protocol_failures is not None:
            self.protocol_failures.close()
        self.deadlines.close()
        self.poller.close()
