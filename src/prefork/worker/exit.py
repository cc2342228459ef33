"""How a worker process ends: within a bounded time, whatever the service has left running.

When a worker has to end, and what is drained before, is in `main.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import signal
import threading
import time
from collections.abc import Coroutine
from typing import Any, NoReturn

from ..core.time_limits import EXIT_STEP_TIMEOUT
from ..events import Emit, TasksStuck
from ..system.processes import System
from ..system.signals import unblock_signals
from ..text import escape_ascii

#: When the kernel ends this process, on the monotonic clock.
_deadline = math.inf


def exit_deadline(seconds: float) -> None:
    """Have the kernel end this process after `seconds`, by SIGALRM: code that hangs cannot prevent it.

    A further call can only make it earlier. If it added its time to that of the first, the supervisor, which waits a
    second longer than one of them, would kill the worker and blame the drain timeout.
    """
    global _deadline
    deadline = time.monotonic() + seconds
    if deadline >= _deadline:
        return
    _deadline = deadline
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    unblock_signals()


def run_until_complete_bounded(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, int], emit: Emit) -> int:
    """Run `main` in `loop`, close the loop, and return what `main` returned.

    Does what `asyncio.run` does, but in a bounded time: `asyncio.run` waits without limit for a task that ignores its
    cancellation.
    """
    asyncio.set_event_loop(loop)
    try:
        code = loop.run_until_complete(main)
    finally:
        stuck = loop.run_until_complete(_cancel_tasks())
        if stuck:
            names = ", ".join(sorted({getattr(task.get_coro(), "__qualname__", "?") for task in stuck}))
            emit(TasksStuck(len(stuck), escape_ascii(names)))
    closing = loop.create_task(loop.shutdown_asyncgens())
    loop.run_until_complete(asyncio.wait({closing}, timeout=EXIT_STEP_TIMEOUT))
    # The loop closes its wake-up descriptor before it unregisters it: a signal in between would be logged as an error.
    signal.set_wakeup_fd(-1)
    loop.close()
    return code


async def _cancel_tasks() -> set[asyncio.Task[Any]]:
    """Cancel all other tasks, and return those that have not ended within EXIT_STEP_TIMEOUT."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    return (await asyncio.wait(tasks, timeout=EXIT_STEP_TIMEOUT))[1] if tasks else set()


def exit_process(code: int) -> NoReturn:
    """End this process with `code`: join threads within EXIT_STEP_TIMEOUT, then run the service's own exit handlers.

    The stack is not unwound, because it belongs to the program that forked this worker: its `finally` blocks and exit
    handlers must run once, in the parent.
    """
    try:
        _join_threads(time.monotonic() + EXIT_STEP_TIMEOUT)
        atexit._run_exitfuncs()
        logging.shutdown()
    finally:
        System().exit(code)


def _join_threads(deadline: float) -> None:
    """Join the threads that the interpreter would join at its end, but not beyond `deadline`."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
