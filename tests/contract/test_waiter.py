"""The direct-step waiter behaves as a future does for the task that awaits it: in Python and in C, on every loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.streams import FLAVOURS, World

from prefork.implementation import native
from prefork.net.waiter import FutureWaiter


@dataclass(frozen=True)
class Kind:
    """A class of waiters, and the class of the tasks that wait."""

    waiter: Any
    task: Any

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Start a task: eagerly in the world whose tasks are eager."""
        loop = asyncio.get_running_loop()
        if self.task is asyncio.Task:
            return loop.create_task(coroutine)
        return self.task(coroutine, loop=loop, eager_start=loop.get_task_factory() is not None)


#: The class in Python, also where the one in C has taken its name.
PURE: Any = FutureWaiter.__base__
KINDS = {"pure-asyncio": Kind(PURE, asyncio.Task)}
if native is not None:
    KINDS["pure-own"] = Kind(PURE, native.Task)
    KINDS["compiled-asyncio"] = Kind(native.Waiter, asyncio.Task)
    KINDS["compiled-own"] = Kind(native.Waiter, native.Task)


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "socketpair")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


async def test_the_waiting_task_is_stepped_at_once(world: World, kind: Kind) -> None:
    loop = asyncio.get_running_loop()
    waiter = kind.waiter(loop)
    order: list[str] = []

    async def wait() -> None:
        await waiter
        order.append("stepped")

    def wake() -> None:
        order.append("before")
        waiter.wake()
        order.append("after")

    task = kind.start(wait())
    await asyncio.sleep(0)
    assert waiter.waiting
    loop.call_soon(wake)
    await task
    assert order == ["before", "stepped", "after"]
    assert not waiter.waiting
    waiter.wake()


async def test_it_can_be_awaited_again_and_again(world: World, kind: Kind) -> None:
    loop = asyncio.get_running_loop()
    waiter = kind.waiter(loop)

    async def wait() -> None:
        for _ in range(100):
            loop.call_soon(waiter.wake)
            await waiter

    await kind.start(wait())


@pytest.mark.parametrize("message", ["enough", ("a", "tuple"), asyncio.CancelledError("an error"), None])
async def test_cancelling_raises_in_the_task_with_its_message(world: World, kind: Kind, message: Any) -> None:
    loop = asyncio.get_running_loop()
    waiter = kind.waiter(loop)

    async def wait() -> tuple[Any, ...]:
        try:
            await waiter
        except asyncio.CancelledError as exc:
            return exc.args
        return ("woken",)

    task = kind.start(wait())
    await asyncio.sleep(0)
    task.cancel(message)
    assert await task == (() if message is None else (message,))
    loop.call_soon(waiter.wake)
    await waiter


@pytest.mark.parametrize("first", ["cancel", "wake"])
async def test_cancel_and_wake_in_one_iteration_lose_nothing(world: World, kind: Kind, first: str) -> None:
    """Whichever came first decides; the other changes nothing, and the waiter can be used again."""
    loop = asyncio.get_running_loop()
    waiter = kind.waiter(loop)
    outcome: list[str] = []

    async def wait() -> None:
        try:
            await waiter
            outcome.append("woken")
            await asyncio.sleep(0)
            outcome.append("went on")
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    task = kind.start(wait())
    await asyncio.sleep(0)

    def both() -> None:
        if first == "cancel":
            task.cancel()
            waiter.wake()
        else:
            waiter.wake()
            task.cancel()

    loop.call_soon(both)
    await asyncio.wait({task})
    assert outcome == (["cancelled"] if first == "cancel" else ["woken", "cancelled"])
    loop.call_soon(waiter.wake)
    await waiter


async def test_timeouts_and_task_groups_cancel_a_wait(world: World, kind: Kind) -> None:
    loop = asyncio.get_running_loop()
    waiter, other = kind.waiter(loop), kind.waiter(loop)

    async def wait(which: Any) -> None:
        await which

    async def fail() -> None:
        raise ValueError("down with the group")

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await waiter
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(waiter), 0.01)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(wait(waiter))
                group.create_task(wait(other))
                group.create_task(fail())
        assert caught.group_contains(ValueError)

    task = kind.start(body())
    # What the group and `wait_for` start is of the same kind.
    if kind.task is not asyncio.Task:
        loop.set_task_factory(lambda loop, coroutine, **options: kind.task(coroutine, loop=loop, **options))
    await task
    assert not waiter.waiting
    assert not other.waiting


async def test_the_step_runs_in_the_context_of_its_task(world: World, kind: Kind) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    loop = asyncio.get_running_loop()
    waiter = kind.waiter(loop)

    async def wait() -> str:
        name.set("the task")
        await waiter
        return name.get()

    task = kind.start(wait())
    await asyncio.sleep(0)
    loop.call_soon(waiter.wake)
    assert await task == "the task"
    assert name.get() == "nobody"
