"""The stacks of tasks: along awaits, generators and wrappers to what a task waits for, on every Python."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Generator
from typing import Any

import pytest

from prefork.core.console_protocol import MAX_FRAMES
from prefork.worker.stacks import TaskStacks, task_stack, thread_stacks


async def innermost() -> None:
    await asyncio.Event().wait()


class Awaitable:
    """An awaitable of a service, whose `__await__` is a generator."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from innermost().__await__()


class Hostile:
    """An awaitable whose `__repr__` raises an exception."""

    _asyncio_future_blocking = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop

    def add_done_callback(self, callback: Any, *, context: Any = None) -> None:
        self.callback = callback

    def cancel(self, msg: Any = None) -> bool:
        self.loop.call_soon(self.callback, self)
        return True

    def result(self) -> None:
        raise asyncio.CancelledError

    def __repr__(self) -> str:
        raise RuntimeError("no text")


async def numbers() -> AsyncIterator[int]:
    await innermost()
    yield 1


async def by_coroutines() -> None:
    async def middle() -> None:
        await innermost()

    await middle()


async def by_generator() -> None:
    async for _ in numbers():
        pass


async def by_anext() -> None:
    await anext(aiter(numbers()), None)


async def by_awaitable() -> None:
    await Awaitable()


async def by_wait_for() -> None:
    async with asyncio.timeout(60):
        await asyncio.wait_for(innermost(), 60)


async def by_queue() -> None:
    await asyncio.Queue[int]().get()


async def by_task() -> None:
    await asyncio.create_task(innermost(), name="the other")


async def by_sleep() -> None:
    await asyncio.sleep(600)


async def by_hostile() -> None:
    await Hostile(asyncio.get_running_loop())  # type: ignore[misc]  # awaitable, for all that mypy cannot see


async def deep(levels: int = 200) -> None:
    if levels:
        await deep(levels - 1)
    else:
        await innermost()


STACKS: list[tuple[Any, list[str], str]] = [
    (by_coroutines, ["by_coroutines", "by_coroutines.<locals>.middle", "innermost", "Event.wait"], "Future"),
    (by_generator, ["by_generator", "numbers", "innermost", "Event.wait"], "Future"),
    (by_anext, ["by_anext", "numbers", "innermost", "Event.wait"], "Future"),
    (by_awaitable, ["by_awaitable", "Awaitable.__await__", "innermost", "Event.wait"], "Future"),
    (by_queue, ["by_queue", "Queue.get"], "Future"),
    (by_task, ["by_task"], "task the other"),
    (by_sleep, ["by_sleep", "sleep"], "Future"),
    (by_hostile, ["by_hostile", "Hostile.__await__"], "Hostile"),
]


def stack_of(main: Coroutine[Any, Any, None]) -> tuple[list[str], str]:
    """Return the functions of a task that waits, and what it waits for."""

    async def run() -> tuple[list[str], str]:
        task = asyncio.create_task(main)
        for _ in range(5):
            await asyncio.sleep(0)
        frames, waits_for = task_stack(task)
        assert all(frame.file.endswith(".py") and frame.line > 0 for frame in frames if frame.file != "...")
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.wait({task})
        return [frame.function for frame in frames], waits_for

    return asyncio.run(run())


@pytest.mark.parametrize(("main", "functions", "waits_for"), STACKS, ids=[each[0].__name__ for each in STACKS])
def test_a_stack_leads_to_what_is_waited_for(main: Any, functions: list[str], waits_for: str) -> None:
    assert stack_of(main()) == (functions, waits_for)


def test_timeouts_are_followed() -> None:
    functions, _ = stack_of(by_wait_for())
    assert functions[:2] == ["by_wait_for", "wait_for"]


def test_a_deep_stack_is_shortened_in_its_middle() -> None:
    functions, _ = stack_of(deep())
    assert len(functions) == MAX_FRAMES + 1
    assert functions[0] == "deep"
    assert functions[MAX_FRAMES // 2].endswith("frames left out")


def test_tasks_with_the_same_stack_are_one_entry() -> None:
    async def run() -> None:
        tasks = [asyncio.create_task(by_sleep()) for _ in range(5)] + [asyncio.create_task(by_queue())]
        await asyncio.sleep(0)
        found = TaskStacks()
        for number, task in enumerate(tasks):
            found.add(task, f"10.0.0.{number}:1")
        first, second = found.largest()
        assert (first.tasks, second.tasks, len(found)) == (5, 1, 2)
        assert first.peers == ("10.0.0.0:1", "10.0.0.1:1", "10.0.0.2:1")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(run())


def test_a_task_that_is_ready_waits_for_its_turn() -> None:
    async def run() -> None:
        task = asyncio.create_task(by_sleep())
        assert task_stack(task)[1] == "its turn"
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(run())


def test_threads_are_told_but_for_the_one_that_asks() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="the worker of a pool")
    thread.start()
    try:
        (found,) = (each for each in thread_stacks() if each.name == "the worker of a pool")
        assert found.frames[-1].function == "Condition.wait"
        assert found.thread
    finally:
        ended.set()
        thread.join()
