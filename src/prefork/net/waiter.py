"""The awaitable that a poller wakes: the waiting task is stepped at once, without a turn of the loop in between.

A task that awaits an object with the future protocol hands it a callback and forgets about it (PEP 3156;
`asyncio.isfuture` tests for `_asyncio_future_blocking`). A real future answers by `loop.call_soon(callback)`, one turn
of the loop and a handle later. `Waiter` calls it directly. That is right only where no other task is running: from a
callback of the loop. `wake()` therefore belongs to the poller's rounds and to `call_soon`, and to nobody else; called
inside a task it raises RuntimeError("Cannot enter into task ... while another task ... is being executed").
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any

_Callback = Callable[["Waiter"], object]


class Waiter:
    """`await waiter` returns None when `wake()` has been called. One task waits at a time; it may wait again and again.

    A wake-up says "look again", not "it is so": whoever waits tests its condition in a loop. Cancelling a waiting task
    raises CancelledError at the await as usual, and leaves the waiter ready for the next.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancel_message", "_context", "_loop", "callback", "spent")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self.callback: _Callback | None = None
        """Steps the task that waits here; None: none does. To be read, not set."""
        self._context: contextvars.Context | None = None
        self.spent = False
        """A cancellation is on its way from here to a task that has waited: nobody else may wait here before, or it
        would be theirs."""
        self._cancel_message: object = None

    @property
    def waiting(self) -> bool:
        """Whether a task waits here now."""
        return self.callback is not None

    def wake(self) -> None:
        """Step the waiting task now; nothing if none waits. Only from a callback of the loop, never inside a task."""
        callback = self.callback
        if callback is not None:
            self.callback = None
            self._context.run(callback, self)  # type: ignore[union-attr]  # whoever set the one has set the other

    def wake_soon(self) -> None:
        """Step the waiting task at the loop's next turn: for use inside a task."""
        if self.callback is not None:
            self._loop.call_soon(self.wake)

    # What follows is the future protocol, as far as asyncio's tasks (C and Python) use it.

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        # The task asks for `result()` before it goes on, and throws what that raises in here.
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
        return self.spent

    def cancel(self, msg: object = None) -> bool:
        """Called by `task.cancel()`. True: the task will be stepped, and `result` will raise CancelledError in it."""
        callback = self.callback
        if callback is None:
            return False
        self.callback = None
        self.spent = True
        self._cancel_message = msg
        # Not at once: the one who cancels is a running task, and two cannot run inside each other.
        self._loop.call_soon(callback, self, context=self._context)
        return True

    def result(self) -> None:
        if self.spent:
            self.spent = False
            message, self._cancel_message = self._cancel_message, None
            raise asyncio.CancelledError() if message is None else asyncio.CancelledError(message)

    def __repr__(self) -> str:
        return f"<Waiter {'waiting' if self.callback is not None else 'idle'}>"
