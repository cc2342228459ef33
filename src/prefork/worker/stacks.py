"""Where the tasks of a loop are at: the frames of each, along what they await, and what the innermost one waits for.

Reads what is there, calls nothing of the service, and keeps no frame. When it is asked for is in `console.py`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Iterator
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from ..core.console_protocol import MAX_FRAMES, MAX_PEERS, Frame, Stack

#: Different stacks of which an answer tells, those of the most tasks first; and threads.
MAX_STACKS = 100
MAX_THREADS = 50
#: Awaits that are followed from one task on.
_MAX_DEPTH = 200
#: Of the types of the compiled core: their text is prefork's own.
_CORE = "prefork._native"


class TaskStacks:
    """The stacks of many tasks, those that are the same as one."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[tuple[Frame, ...], str], Stack] = {}

    def __len__(self) -> int:
        return len(self._stacks)

    def add(self, task: asyncio.Task[Any], peer: str = "") -> None:
        """Add one task; `peer` is that of the connection that it serves."""
        frames, waits_for = task_stack(task)
        known = self._stacks.get((frames, waits_for))
        if known is None:
            self._stacks[frames, waits_for] = Stack(
                task.get_name(), 1, frames, waits_for, (peer,) if peer else (), False
            )
            return
        peers = (*known.peers, peer) if peer and len(known.peers) < MAX_PEERS else known.peers
        self._stacks[frames, waits_for] = known._replace(tasks=known.tasks + 1, peers=peers)

    def largest(self) -> list[Stack]:
        """Return the stacks of the most tasks, of connections first if they have as many; MAX_STACKS of them."""
        return sorted(self._stacks.values(), key=lambda each: (-each.tasks, not each.peers))[:MAX_STACKS]


def task_stack(task: asyncio.Task[Any]) -> tuple[tuple[Frame, ...], str]:
    """Return the frames of a task that waits, the outermost first, and what it waits for."""
    frames: list[Frame] = []
    awaited: object = task.get_coro()
    for _ in range(_MAX_DEPTH):
        code, frame, inner = _look_into(awaited)
        if code is not None:
            if frame is not None:
                frames.append(_frame_of(code, frame.f_lineno))
        elif inner is None:
            break
        if inner is None:
            # A generator that yields by itself, as a future's __await__ does; or a task that is ready to run.
            awaited = None
            break
        awaited = inner
    waits_for = getattr(task, "_fut_waiter", None)
    return _shortened(frames), _describe(awaited if waits_for is None or _is_ours(awaited) else waits_for)


def _look_into(awaited: object) -> tuple[CodeType | None, FrameType | None, object]:
    """Return the code and the frame of what is awaited, if it has one, and what it awaits itself."""
    if isinstance(awaited, CoroutineType):
        return awaited.cr_code, awaited.cr_frame, awaited.cr_await
    if isinstance(awaited, GeneratorType):
        return awaited.gi_code, awaited.gi_frame, awaited.gi_yieldfrom
    if isinstance(awaited, AsyncGeneratorType):
        return awaited.ag_code, awaited.ag_frame, awaited.ag_await
    return None, None, next(_wrapped(awaited), None)


#: What stands between an await and what is awaited. None of them has an attribute that names it.
_WRAPPERS = {
    "coroutine_wrapper",
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
    "_asyncio.FutureIter",
    "FutureIter",
    "tuple_iterator",
    "tuple",
}
_FOLLOWED = (CoroutineType, GeneratorType, AsyncGeneratorType)


def _wrapped(awaited: object) -> Iterator[object]:
    """Return what a wrapper of the interpreter refers to, which only the garbage collector can tell."""
    if type(awaited).__name__ in _WRAPPERS:
        for each in gc.get_referents(awaited):
            if isinstance(each, _FOLLOWED) or type(each).__name__ in _WRAPPERS or _is_future(each):
                yield each


def _is_future(value: object) -> bool:
    # By its type, because an attribute of an instance may be code of the service.
    return isinstance(value, asyncio.Future) or hasattr(type(value), "_asyncio_future_blocking")


def _is_ours(awaited: object) -> bool:
    return type(awaited).__module__ == _CORE


def _describe(awaited: object) -> str:
    """Return what a task waits for, without calling code of the service."""
    if awaited is None:
        return "its turn"
    if _is_ours(awaited):
        return repr(awaited)
    if isinstance(awaited, asyncio.Task):
        return f"task {awaited.get_name()}"
    return type(awaited).__qualname__


def _frame_of(code: CodeType, line: int | None) -> Frame:
    return Frame(code.co_filename, line or code.co_firstlineno, code.co_qualname)


def _shortened(frames: list[Frame]) -> tuple[Frame, ...]:
    if len(frames) <= MAX_FRAMES:
        return tuple(frames)
    half = MAX_FRAMES // 2
    return (*frames[:half], Frame("...", 0, f"{len(frames) - MAX_FRAMES} frames left out"), *frames[-half:])


def thread_stacks() -> list[Stack]:
    """Return the stacks of all threads but the calling one, which runs the loop."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = []
    for ident, frame in list(sys._current_frames().items())[: MAX_THREADS + 1]:
        if ident != threading.get_ident():
            frames: list[Frame] = []
            inner: FrameType | None = frame
            while inner is not None and len(frames) < 10 * MAX_FRAMES:
                frames.append(_frame_of(inner.f_code, inner.f_lineno))
                inner = inner.f_back
            stacks.append(Stack(names.get(ident, f"thread {ident}"), 1, _shortened(frames[::-1]), "", (), True))
    return stacks
