"""The start and the stop of a service, each within its time: worker factory, `start()` and `stop()`.

Not `asyncio.wait_for`, because that waits without limit for the end of what it cancelled. When they are called is
decided in `main.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from ..config import Settings
from ..core.time_limits import SERVICE_START_MARGIN
from ..errors import ServiceError
from ..net.handlers import Handler, Kind, classify_made
from .loader import describe_failure, target_name, with_streams


class _StopRequestedError(Exception):
    """The worker is to stop before its service has started."""


async def start_service(
    handler: Handler, stop: asyncio.Event, target: object, settings: Settings, deadline: float
) -> Handler | None:
    """Call a worker factory, run the `start()` of the handler, and return the handler; None if `stop` was set first.

    Raises ServiceError if one of the two fails, or has not ended at `deadline` on the monotonic clock, which is a
    moment before --boot-timeout.
    """
    name = target_name(target)
    try:
        if handler.kind is Kind.FACTORY:
            factory = _started(handler.call(), stop, deadline, name, "the worker factory", settings)
            handler = with_streams(classify_made(await factory, name), target, settings)
        await _started(handler.start(), stop, deadline, name, "start()", settings)
    except _StopRequestedError:
        return None
    return handler


async def _started(
    call: Awaitable[Any], stop: asyncio.Event, deadline: float, name: str, what: str, settings: Settings
) -> Any:
    boot_timeout = settings.boot_timeout
    starting = asyncio.ensure_future(call)
    stopping = asyncio.ensure_future(stop.wait())
    left = max(0.0, deadline - time.monotonic())
    await asyncio.wait({starting, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        if stop.is_set():
            await asyncio.wait({starting}, timeout=settings.stop_timeout)
            raise _StopRequestedError
        # The supervisor kills this process soon. What is cancelled ends before, so that its reason is told.
        await asyncio.wait({starting}, timeout=min(SERVICE_START_MARGIN, boot_timeout / 4) / 2)
        raise ServiceError(f"service {name}: {what} did not return within {boot_timeout:g} s (--boot-timeout)")
    exc = _exception_of(starting)
    if exc is not None:
        raise ServiceError(f"service {name}: {what} raised {describe_failure(exc)}") from exc
    return starting.result()


async def stop_service(handler: Handler, timeout: float) -> BaseException | None:
    """Run the handler's `stop()` and return what it raised, or a TimeoutError after `timeout` seconds."""
    stopping = asyncio.ensure_future(handler.stop())
    await asyncio.wait({stopping}, timeout=timeout)
    if not stopping.done():
        stopping.cancel()
        return TimeoutError(f"it did not return within {timeout:g} s (--stop-timeout)")
    return _exception_of(stopping)


def _exception_of(done: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError("by itself") if done.cancelled() else done.exception()
