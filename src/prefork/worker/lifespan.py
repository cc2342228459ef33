"""The `start()` and `stop()` of a lifespan object, each within its time.

Not `asyncio.wait_for`, because that waits without limit for the end of what it cancelled. When they are called is
decided in `main.py`.
"""

from __future__ import annotations

import asyncio

from ..core.time_limits import SERVICE_START_TIMEOUT, SERVICE_STOP_TIMEOUT
from ..errors import ServiceError
from ..net.handlers import Handler
from .loader import describe_failure, target_name


async def start_service(handler: Handler, stop: asyncio.Event, target: object) -> bool:
    """Run the handler's `start()`; return False if `stop` was set first. Raises ServiceError if `start()` fails."""
    starting = asyncio.ensure_future(handler.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, timeout=SERVICE_START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    name = target_name(target)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=SERVICE_STOP_TIMEOUT)
        if stop.is_set():
            return False
        raise ServiceError(f"service {name}: start() did not return within {SERVICE_START_TIMEOUT:.0f} s")
    exc = _exception_of(starting)
    if exc is not None:
        raise ServiceError(f"service {name}: start() raised {describe_failure(exc)}") from exc
    return True


async def stop_service(handler: Handler) -> BaseException | None:
    """Run the handler's `stop()` and return what it raised, or a TimeoutError after SERVICE_STOP_TIMEOUT seconds."""
    stopping = asyncio.ensure_future(handler.stop())
    await asyncio.wait({stopping}, timeout=SERVICE_STOP_TIMEOUT)
    if not stopping.done():
        stopping.cancel()
        return TimeoutError(f"it did not return within {SERVICE_STOP_TIMEOUT:.0f} s")
    return _exception_of(stopping)


def _exception_of(done: asyncio.Future[None]) -> BaseException | None:
    return asyncio.CancelledError("by itself") if done.cancelled() else done.exception()
