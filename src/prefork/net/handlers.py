"""What a service may be, told apart by its shape: stream handler, asyncio handler, protocol factory, lifespan object.

Decides from signatures alone; nothing of the service is called here.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..errors import ServiceError


class Kind(enum.Enum):
    """How a service is called for each connection."""

    STREAM = "stream handler"
    """`async def handle(stream)`"""
    ASYNCIO = "asyncio streams handler"
    """`async def handle(reader, writer)`, as `asyncio.start_server` takes it"""
    PROTOCOL = "protocol"
    """a zero-argument factory of `asyncio.Protocol` or `BufferedProtocol`, as `loop.create_server` takes it"""
    LIFESPAN = "lifespan object"
    """an object with `async` `start()`, `handle(stream)` and `stop()`"""


class Handler:
    """A service and how to call it."""

    __slots__ = ("_lifespan", "call", "kind")

    def __init__(self, kind: Kind, call: Callable[..., Any], lifespan: Any = None) -> None:
        self.kind = kind
        self.call = call
        self._lifespan = lifespan

    async def start(self) -> None:
        """The set-up of a lifespan object; for the other kinds there is none."""
        if self._lifespan is not None:
            await self._lifespan.start()

    async def stop(self) -> None:
        """The end of a lifespan object; for the other kinds there is none."""
        if self._lifespan is not None:
            await self._lifespan.stop()


_ACCEPTED = (
    "expected async def handle(stream), async def handle(reader, writer), an asyncio.Protocol class or factory, "
    "or an object with async start, handle and stop"
)


def classify(target: object) -> Handler:
    """The handler that `target` is. Raises ServiceError, which says what is expected, if it is none."""
    if isinstance(target, Handler):
        return target
    if isinstance(target, type):
        if issubclass(target, asyncio.BaseProtocol):
            return Handler(Kind.PROTOCOL, target)
        raise ServiceError(f"{_name(target)} is a class, but no asyncio.Protocol: {_ACCEPTED}")
    if all(hasattr(target, name) for name in ("start", "handle", "stop")):
        return _lifespan(target)
    if not callable(target):
        raise ServiceError(f"{_name(target)} is not callable: {_ACCEPTED}")
    count = _positional(target)
    if _is_async(target):
        if count == 1:
            return Handler(Kind.STREAM, target)
        if count == 2:
            return Handler(Kind.ASYNCIO, target)
        raise ServiceError(f"{_name(target)} takes {_parameters(count)}: {_ACCEPTED}")
    if count == 0:
        return Handler(Kind.PROTOCOL, target)
    raise ServiceError(f"{_name(target)} takes {_parameters(count)} and is not async: {_ACCEPTED}")


def _lifespan(target: Any) -> Handler:
    for name, count in (("start", 0), ("handle", 1), ("stop", 0)):
        method = getattr(target, name)
        if not callable(method) or not _is_async(method) or _positional(method) != count:
            wanted = "(stream)" if count else "()"
            raise ServiceError(f"{_name(target)}.{name} must be async def {name}{wanted}: {_ACCEPTED}")
    return Handler(Kind.LIFESPAN, target.handle, target)


def _is_async(target: Any) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


def _positional(target: Callable[..., Any]) -> int:
    """How many positional parameters must be given; -1 if that cannot be known, or any number would do."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return -1
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return -1
    if not required and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return -1
    return len(required)


def _parameters(count: int) -> str:
    if count < 0:
        return "an unclear number of parameters"
    return f"{count or 'no'} positional parameter{'' if count == 1 else 's'}"


def _name(target: Any) -> str:
    return str(getattr(target, "__qualname__", None) or f"the object of type {type(target).__qualname__}")
