"""The direct-step waiter behaves as a future does for the task that awaits it, on every loop."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from helpers.streams import FLAVOURS, World

from prefork.net.waiter import Waiter


@pytest.fixture(params=FLAVOURS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param, "socketpair")


async def test_the_waiting_task_is_stepped_at_once(world: World) -> None:
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)
    order: list[str] = []

    async def wait() -> None:
        await waiter
        order.append("stepped")

    def wake() -> None:
        order.append("before")
        waiter.wake()
        order.append("after")

    task = loop.create_task(wait())
    await asyncio.sleep(0)
    assert waiter.waiting
    loop.call_soon(wake)
    await task
    assert order == ["before", "stepped", "after"]
    assert not waiter.waiting
    waiter.wake()


async def test_it_can_be_awaited_again_and_again(world: World) -> None:
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)
    for _ in range(100):
        loop.call_soon(waiter.wake)
        await waiter


async def test_cancelling_raises_in_the_task_with_its_message(world: World) -> None:
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)

    async def wait() -> str:
        try:
            await waiter
        except asyncio.CancelledError as exc:
            return str(exc.args)
        return "woken"

    task = loop.create_task(wait())
    await asyncio.sleep(0)
    task.cancel("enough")
    assert await task == "('enough',)"
    loop.call_soon(waiter.wake)
    await waiter


@pytest.mark.parametrize("first", ["cancel", "wake"])
async def test_cancel_and_wake_in_one_iteration_lose_nothing(world: World, first: str) -> None:
    """Whichever came first decides; the other changes nothing, and the waiter can be used again."""
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)
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

    task = loop.create_task(wait())
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


async def test_timeouts_and_task_groups_cancel_a_wait(world: World) -> None:
    loop = asyncio.get_running_loop()
    waiter, other = Waiter(loop), Waiter(loop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waiter

    async def wait(which: Waiter) -> None:
        await which

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(waiter), 0.01)

    async def fail() -> None:
        raise ValueError("down with the group")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(waiter))
            group.create_task(wait(other))
            group.create_task(fail())
    assert caught.group_contains(ValueError)
    assert not waiter.waiting
    assert not other.waiting


async def test_the_step_runs_in_the_context_of_its_task(world: World) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)

    async def wait() -> str:
        name.set("the task")
        await waiter
        return name.get()

    task = loop.create_task(wait())
    await asyncio.sleep(0)
    loop.call_soon(waiter.wake)
    assert await task == "the task"
    assert name.get() == "nobody"
