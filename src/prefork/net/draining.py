"""The `drain()` of a service or of one of its protocols: how it is called, and what becomes of its failure.

When it is called, and how long it may take, is decided in base_server.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from .server_state import ServerState


def has_drain(target: object) -> bool:
    return callable(getattr(target, "drain", None))


def call_drain(target: Any, state: ServerState, failed: Callable[[BaseException], object]) -> asyncio.Task[None] | None:
    """Call `target.drain()`; return a task of the caller's that awaits what it returned, None if there is nothing.

    An exception goes to `failed`, and no further: neither to the caller nor to the loop.
    """
    try:
        result = target.drain()
    except BaseException as exc:
        failed(exc)
        return None
    if not inspect.isawaitable(result):
        return None
    return state.callback_context.copy().run(state.loop.create_task, _finish(result, failed))


async def _finish(awaitable: Awaitable[object], failed: Callable[[BaseException], object]) -> None:
    try:
        await awaitable
    except (asyncio.CancelledError, GeneratorExit):
        # By the server, at the end of its time.
        raise
    except BaseException as exc:
        failed(exc)
