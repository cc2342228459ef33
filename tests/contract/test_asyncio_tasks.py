"""CPython's own tests of asyncio.Task, run against the task of the compiled core; and what is its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefork.implementation import native

if native is None:
    pytest.skip("there is no compiled core", allow_module_level=True)

Task: Any = native.Task
PROGRAM = Path(__file__).parent / "cpython_tasks.py"


def test_cpythons_own_tests_pass() -> None:
    """In a process of its own, because they collect garbage often, which takes long in a large one."""
    if importlib.util.find_spec("test.test_asyncio") is None:
        pytest.skip("Python's own tests are not installed")
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ran = re.search(r"Ran (\d+) tests", done.stderr)
    assert ran is not None
    assert int(ran[1]) >= 100


async def finish(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_an_eager_task_runs_up_to_its_first_wait_and_is_known_until_it_is_done() -> None:
    async def main() -> None:
        steps = []

        async def work() -> str:
            steps.append(asyncio.current_task())
            await asyncio.sleep(0)
            return "done"

        outer = asyncio.current_task()
        task = Task(work(), loop=asyncio.get_running_loop(), eager_start=True)
        if sys.version_info >= (3, 12):
            assert steps == [task]
            assert asyncio.current_task() is outer
        assert task in asyncio.all_tasks()
        assert await task == "done"
        assert task not in asyncio.all_tasks()

    asyncio.run(main())


def test_a_task_that_is_done_is_released() -> None:
    async def main() -> None:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError

        loop = asyncio.get_running_loop()
        gone = []
        for coroutine in (finish(1), fail(), asyncio.sleep(100)):
            task = Task(coroutine, loop=loop, eager_start=True)
            loop.call_later(0.01, task.cancel)
            await asyncio.wait([task])
            gone.append(weakref.ref(task))
            task.cancelled() or task.exception()
        del task, coroutine
        # Timers that are due drop the methods that they hold.
        await asyncio.sleep(0.02)
        gc.collect()
        assert [each() for each in gone] == [None, None, None]

    asyncio.run(main())


def test_it_has_a_context_of_its_own_in_each_step() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def main() -> None:
        async def work() -> list[str]:
            variable.set("inner")
            await asyncio.sleep(0)
            return [variable.get()]

        task = Task(work(), loop=asyncio.get_running_loop(), context=contextvars.copy_context(), eager_start=True)
        assert variable.get() == "unset"
        assert await task == ["inner"]
        assert variable.get() == "unset"

    asyncio.run(main())


def test_a_cancellation_that_races_with_readiness_is_delivered_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiter = native.Waiter(loop)
        caught = []

        async def work() -> int:
            try:
                await waiter
            except asyncio.CancelledError as exc:
                caught.append(exc.args)
            return await finish(5)

        task = Task(work(), loop=loop, eager_start=True)
        await asyncio.sleep(0)
        assert task.cancel("why")
        loop.call_soon(waiter.wake)
        assert await task == 5
        assert caught == [("why",)]
        assert not waiter.waiting

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_raised_to_the_loop(error: type[BaseException]) -> None:
    async def main() -> None:
        async def work() -> None:
            await asyncio.sleep(0)
            raise error

        tasks.append(Task(work(), loop=asyncio.get_running_loop(), eager_start=True))
        await asyncio.wait(tasks)

    tasks: list[Any] = []
    with pytest.raises(error):
        asyncio.run(main())
    assert isinstance(tasks[0].exception(), error)


def test_it_works_with_timeouts_and_task_groups() -> None:
    async def main() -> None:
        async def work() -> list[int]:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(10)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(finish(number)) for number in range(3)]
            return [task.result() for task in tasks]

        task = Task(work(), loop=asyncio.get_running_loop(), eager_start=True)
        assert await asyncio.wait_for(asyncio.gather(task), 10) == [[0, 1, 2]]

    asyncio.run(main())


class YieldsItsOnlyWaiter:
    """An awaitable that keeps no reference to the waiter that it yields."""

    def __await__(self) -> Iterator[Any]:
        waiters = [native.Waiter(asyncio.get_running_loop())]
        waiters[0]._asyncio_future_blocking = True
        yield waiters.pop()


def test_a_waiter_that_only_the_task_holds_can_be_cancelled() -> None:
    async def wait() -> None:
        await YieldsItsOnlyWaiter()

    async def main() -> None:
        # Some rounds, because memory that was freed is often still readable.
        for _ in range(100):
            task = Task(wait(), loop=asyncio.get_running_loop())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_a_task_without_init_refuses_to_run() -> None:
    task = Task.__new__(Task)
    assert task.get_coro() is None
    assert task.get_context() is None
    assert task._fut_waiter is None
    loop = asyncio.new_event_loop()
    try:
        future = loop.create_future()
        future.set_result(None)
        with pytest.raises(RuntimeError, match="not initialized"):
            task._wakeup(future)
        with pytest.raises(TypeError, match="a coroutine was expected"):
            task.__init__(3, loop=loop)
        with pytest.raises(RuntimeError, match="not initialized"):
            task._step()
    finally:
        loop.close()


def test_init_inside_the_task_does_not_free_what_runs() -> None:
    steps: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # A step of the other coroutine finds its task done.
        other = finish(1)

        async def work() -> None:
            task.__init__(other, loop=loop)
            steps.append("went on")

        # Not awaited, because `__init__` forgets the callbacks.
        task = Task(work(), loop=loop)
        while not task.done():
            await asyncio.sleep(0)
        other.close()

    asyncio.run(main())
    assert steps == ["went on"]


# In a cycle with the module, which the collector may clear first: the task must end without it.
EXIT = """
import asyncio, builtins
from prefork._native import Task, Waiter

class Sub(Task):
    pass

async def wait():
    await Waiter(loop)

loop = asyncio.new_event_loop()
for task in Task(wait(), loop=loop), Sub(wait(), loop=loop):
    task.itself, task.module = task, __import__("prefork._native")
    task._log_destroy_pending = False
builtins.kept = task
loop.call_soon(loop.stop)
loop.run_forever()
"""


def test_pending_tasks_in_cycles_end_with_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_tasks_leave_no_memory() -> None:
    async def wait(waiter: Any) -> None:
        await waiter

    async def churn(count: int) -> None:
        loop = asyncio.get_running_loop()
        waiter = native.Waiter(loop)
        for number in range(count):
            task = Task(wait(waiter), loop=loop)
            await asyncio.sleep(0)
            if number % 2:
                task.cancel()
            else:
                waiter.wake_soon()
            await asyncio.wait([task])

    asyncio.run(churn(1000))
    gc.collect()
    before = sys.getallocatedblocks()
    asyncio.run(churn(10_000))
    gc.collect()
    assert sys.getallocatedblocks() - before < 2000
