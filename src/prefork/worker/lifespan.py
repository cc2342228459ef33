"""The start and the stop of a service, each within its time: worker factory, `start()` and `stop()`.

Not `asyncio.wait_for`, because that waits without limit for the end of what it cancelled. When they are called is
decided in `main.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ..config import Settings
from ..core.time_limits import SERVICE_START_TIMEOUT, SERVICE_STOP_TIMEOUT
from ..errors import ServiceError
from ..net.handlers import Handler, Kind, classify_made
from .loader import describe_failure, target_name, with_streams


class _StopRequestedError(Exception):
    """The worker is to stop before its service has started."""


async def start_service(handler: Handler, stop: asyncio.Event, target: object, settings: Settings) -> Handler | None:
    """Call a worker factory, run the `start()` of the handler, and return the handler; None if `stop` was set first.

    Raises ServiceError if one of the two fails, or takes longer than SERVICE_START_TIMEOUT seconds.
    """
    name = target_name(target)
    try:
        if handler.kind is Kind.FACTORY:
            made = classify_made(await _started(handler.call(), stop, name, "the worker factory"), name)
            handler = with_streams(made, target, settings)
        await _started(handler.start(), stop, name, "start()")
    except _StopRequestedError:
        return None
    return handler


async def _started(call: Awaitable[Any], stop: asyncio.Event, name: str, what: str) -> Any:
    starting = asyncio.ensure_future(call)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, timeout=SERVICE_START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=SERVICE_STOP_TIMEOUT)
        if stop.is_set():
            raise _StopRequestedError
        raise ServiceError(f"service {name}: {what} did not return within {SERVICE_START_TIMEOUT:.0f} s")
    exc = _exception_of(starting)
    if exc is not None:
        raise ServiceError(f"service {name}: {what} raised {describe_failure(exc)}") from exc
    return starting.result()


async def stop_service(handler: Handler) -> BaseException | None:
    """Run the handler's `stop()` and return what it raised, or a TimeoutError after SERVICE_STOP_TIMEOUT seconds."""
    stopping = asyncio.ensure_future(handler.stop())
    await asyncio.wait({stopping}, timeout=SERVICE_STOP_TIMEOUT)
    if not stopping.done():
        stopping.cancel()
        return TimeoutError(f"it did not return within {SERVICE_STOP_TIMEOUT:.0f} s")
    return _exception_of(stopping)


def _exception_of(done: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError("by itself") if done.cancelled() else done.exception()
