"""The end of a worker: whatever the service has left running, the process is gone in time and leaves no mess.

Here is only how a process ends. When it has to, and what is drained before, is in `main.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import signal
import threading
import time
from collections.abc import Coroutine
from typing import Any, NoReturn

from ..core.time_limits import EXIT_STEP_TIMEOUT
from ..events import Emit, TasksStuck, escape_ascii
from ..system.processes import System
from ..system.signals import unblock_signals


def drop_inherited_atexit() -> None:
    """Drop the exit handlers that came with the fork: they are the parent's, to be run once, there."""
    atexit._clear()


def exit_deadline(seconds: float) -> None:
    """Have the kernel end this process when it is still there in `seconds`: code that hangs cannot hold it up."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    unblock_signals()


def run_until_complete_bounded(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, int], emit: Emit) -> int:
    """What `asyncio.run` does, but it ends: a task that swallows its cancellation would hold `asyncio.run` for ever."""
    asyncio.set_event_loop(loop)
    try:
        code = loop.run_until_complete(main)
    finally:
        stuck = loop.run_until_complete(_cancel_tasks())
        if stuck:
            names = ", ".join(sorted({getattr(task.get_coro(), "__qualname__", "?") for task in stuck}))
            emit(TasksStuck(len(stuck), escape_ascii(names)))
    loop.run_until_complete(_within(loop.shutdown_asyncgens(), EXIT_STEP_TIMEOUT))
    # The loop closes the descriptor before it gives it up: a signal in between would be told as an error.
    signal.set_wakeup_fd(-1)
    loop.close()
    return code


async def _cancel_tasks() -> set[asyncio.Task[Any]]:
    """Cancel all tasks but this one; those that do not end in time."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    return (await asyncio.wait(tasks, timeout=EXIT_STEP_TIMEOUT))[1] if tasks else set()


async def _within(coroutine: Coroutine[Any, Any, None], seconds: float) -> None:
    await asyncio.wait({asyncio.ensure_future(coroutine)}, timeout=seconds)


def leave(code: int) -> NoReturn:
    """End this process with `code`, and do not unwind the stack: below us is the program that forked this worker, whose
    `finally` blocks and exit handlers are not ours to run. The service's own exit handlers run."""
    try:
        _join_threads(time.monotonic() + EXIT_STEP_TIMEOUT)
        atexit._run_exitfuncs()
        logging.shutdown()
    finally:
        System().exit(code)


def _join_threads(deadline: float) -> None:
    """As the interpreter does at its end, but not for ever."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
