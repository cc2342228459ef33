"""The awaitable that the poller wakes: `wake()` steps the waiting task at once, without a loop iteration in between.

It knows nothing of sockets, and what the woken task finds is for that task to test.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

from ..implementation import native
from .cpython import HAS_FUTURE_PROTOCOL, FutureLike

_Callback = Callable[[Any], object]


# A task that awaits an object with the future protocol hands it a callback and forgets about it (PEP 3156). A real
# future answers with `loop.call_soon(callback)`, one loop iteration and a handle later. `Waiter` calls it directly.
# That is right only where no other task is running: in a callback of the loop. `wake()` is therefore only for the
# poller's rounds and for `call_soon`. Inside a task it raises RuntimeError("Cannot enter into task ... while another
# task ... is being executed").
class Waiter(FutureLike):
    """`await waiter` returns None after `wake()`. One task waits at a time; the waiter can be awaited again and again.

    A wake-up says "look again", not "it is so": the task tests its condition in a loop. Cancelling the task raises
    CancelledError at the await as usual, and leaves the waiter usable.
    """

    __slots__ = ("_cancel_message", "_context", "_loop", "callback", "cancel_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self.callback: _Callback | None = None
        """Steps the task that waits here; None if none does. Read-only outside this class."""
        self._context: contextvars.Context | None = None
        self.cancel_pending = False
        """A cancellation is scheduled but not yet delivered. Do not reuse the waiter until it is, otherwise the next
        task would receive it."""
        self._cancel_message: object = None

    @property
    def waiting(self) -> bool:
        return self.callback is not None

    def wake(self) -> None:
        """Step the waiting task, if there is one. Only from a callback of the loop, never inside a task."""
        callback = self.callback
        if callback is not None:
            self.callback = None
            self._context.run(callback, self)  # type: ignore[union-attr]  # set together with the callback

    def wake_soon(self) -> None:
        """Step the waiting task in the loop's next iteration. For use inside a task."""
        if self.callback is not None:
            self._loop.call_soon(self.wake)

    # The future protocol, as far as asyncio's tasks (in C and in Python) use it.

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        # Before the task continues it calls `result()`, and throws what that raises in here.
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: _Callback, *, context: contextvars.Context | None = None) -> None:
        self.callback = callback
        self._context = contextvars.copy_context() if context is None else context

    def remove_done_callback(self, callback: _Callback) -> int:
        if self.callback != callback:
            return 0
        self.callback = None
        return 1

    def done(self) -> bool:
        return self.callback is None

    def cancelled(self) -> bool:
        return self.cancel_pending

    def cancel(self, msg: object = None) -> bool:
        """Called by `task.cancel()`. True: the task will be stepped, and `result` will raise CancelledError in it."""
        callback = self.callback
        if callback is None:
            return False
        self.callback = None
        self.cancel_pending = True
        self._cancel_message = msg
        # Not at once, because the task that cancels is running and two cannot run inside each other.
        self._loop.call_soon(callback, self, context=self._context)
        return True

    def result(self) -> None:
        if self.cancel_pending:
            self.cancel_pending = False
            message, self._cancel_message = self._cancel_message, None
            raise asyncio.CancelledError() if message is None else asyncio.CancelledError(message)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'waiting' if self.waiting else 'idle'}>"


class FutureWaiter(Waiter):
    """The fallback on public names: a future for each await, so the task continues one loop iteration later."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        future = _WaiterFuture(self, self._loop)
        self.callback = future.wake
        return future.__await__()

    def wake(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback(self)


class _WaiterFuture(asyncio.Future[None]):
    def __init__(self, waiter: Waiter, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._waiter = waiter

    def wake(self, _: object) -> None:
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: object = None) -> bool:
        if not self.done():
            self._waiter.callback = None
        return super().cancel(msg)


if native is not None:
    Waiter = native.Waiter  # type: ignore[misc]  # the same class in C
elif not HAS_FUTURE_PROTOCOL:
    Waiter = FutureWaiter  # type: ignore[misc]  # the subclass takes the place of its base
