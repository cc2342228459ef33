"""CPython's own tests of asyncio.Task, for the task of the compiled core: `python cpython_tasks.py`."""

from __future__ import annotations

import asyncio
import unittest

from test.test_asyncio import test_tasks, utils

from prefork.implementation import native


class NativeTaskTests(test_tasks.BaseTaskTests, utils.TestCase):
    """As `CTask_CFuture_Tests` there, with another task."""

    Task = native.Task
    Future = asyncio.Future
    all_tasks = staticmethod(asyncio.all_tasks)

    def setUp(self) -> None:
        super().setUp()
        self.loop = self.new_test_loop()
        self.loop.set_task_factory(self.new_task)
        self.loop.create_future = lambda: self.new_future(self.loop)


if __name__ == "__main__":
    unittest.main()
