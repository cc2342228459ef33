"""Blocking calls from a loop, one at a time, in a thread that the end of the program does not wait for.

Nothing here knows what is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class SerialCalls:
    """Runs blocking calls one after the other.

    The thread is a daemon, because `asyncio.to_thread` would hold up the end of the program until its call returns.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="prefork-top-calls", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns or raises. Cancelling leaves the call to its end and drops its result."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]  # a T unless there was an error

        def run() -> None:
            result, error = None, None
            try:
                result = function(*arguments)
            except Exception as exc:
                error = exc
            # The loop may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(finish, result, error)

        self._calls.put(run)
        return await done

    def close(self, timeout: float = 0.0) -> None:
        """Let the thread end after the call that it is in; wait for that at most `timeout` seconds."""
        self._calls.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
