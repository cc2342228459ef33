"""What a service may be, as a type and as a check by its signature: see `Kind`.

Nothing of the service is called here.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import ServiceError

if TYPE_CHECKING:
    from .stream import Stream


class Lifespan(Protocol):
    """A service with a beginning and an end: `start` runs before its first connection, `stop` after its last."""

    async def start(self) -> object: ...
    async def handle(self, stream: Stream, /) -> object: ...
    async def stop(self) -> object: ...


StreamHandler: TypeAlias = "Callable[[Stream], Coroutine[Any, Any, object]]"
AsyncioHandler: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]"
ProtocolFactory: TypeAlias = "Callable[[], asyncio.BaseProtocol]"
#: What can be served. A type checker finds a handler of another shape.
Service: TypeAlias = "StreamHandler | AsyncioHandler | ProtocolFactory | Lifespan"


class Kind(enum.Enum):
    """How a service is called for each connection."""

    STREAM = "stream handler"
    """`async def handle(stream)`"""
    ASYNCIO = "asyncio streams handler"
    """`async def handle(reader, writer)`, as for `asyncio.start_server`"""
    CALLBACK = "asyncio streams callback"
    """`def handle(reader, writer)`, as for `asyncio.start_server`: the connection is open until the writer is closed"""
    PROTOCOL = "protocol"
    """a zero-argument factory of `asyncio.Protocol` or `BufferedProtocol`, as for `loop.create_server`"""
    LIFESPAN = "lifespan object"
    """an object with `async` `start()`, `handle(stream)` and `stop()`"""


@dataclass(frozen=True, slots=True)
class Handler:
    """A service that was classified, and how to call it."""

    kind: Kind
    call: Callable[..., Any]
    lifespan: Any = None

    async def start(self) -> None:
        if self.lifespan is not None:
            await self.lifespan.start()

    async def stop(self) -> None:
        if self.lifespan is not None:
            await self.lifespan.stop()


_EXPECTED = (
    "expected async def handle(stream), async def handle(reader, writer), an asyncio.Protocol class or factory, "
    "or an object with async start, handle and stop"
)
_LIFESPAN_METHODS = ("start", "handle", "stop")


def classify(target: object, name: str = "") -> Handler:
    """Return the handler that `target` is; `name` is what the user called it by, if anything.

    Raises ServiceError for anything else. The message says what is wrong and what is expected.
    """
    try:
        return _classify(target)
    except ServiceError as exc:
        prefix = f"service {name}: " if name else ""
        raise ServiceError(f"{prefix}{exc}; {_EXPECTED}") from None


def _classify(target: object) -> Handler:
    if isinstance(target, Handler):
        return target
    name = _name(target)
    if isinstance(target, type):
        if issubclass(target, asyncio.BaseProtocol):
            return Handler(Kind.PROTOCOL, target)
        raise ServiceError(f"{name} is a class, and no asyncio.Protocol: name an instance, as in service = {name}()")
    missing = [f"`{method}`" for method in _LIFESPAN_METHODS if not hasattr(target, method)]
    if not missing:
        return _lifespan(target)
    if not callable(target):
        partial = len(missing) < len(_LIFESPAN_METHODS)
        raise ServiceError(f"{name} has no {' and no '.join(missing)}" if partial else f"{name} is not callable")
    if _is(inspect.isasyncgenfunction, target):
        raise ServiceError(f"{name} is an async generator: remove its `yield`")
    count = _required_positional(target)
    if _is(inspect.iscoroutinefunction, target):
        if count == 1:
            return Handler(Kind.STREAM, target)
        if count == 2:
            return Handler(Kind.ASYNCIO, target)
        raise ServiceError(f"{name} takes {_parameters(count)}")
    if count == 0:
        return Handler(Kind.PROTOCOL, target)
    if count == 2:
        return Handler(Kind.CALLBACK, target)
    raise ServiceError(f"{name} takes {_parameters(count)} and is not async")


def _lifespan(target: Any) -> Handler:
    for name, count in (("start", 0), ("handle", 1), ("stop", 0)):
        method = getattr(target, name)
        is_async = callable(method) and _is(inspect.iscoroutinefunction, method)
        if not is_async or _required_positional(method) != count:
            raise ServiceError(f"`{name}` of {_name(target)} must be async def {name}({'stream' if count else ''})")
    return Handler(Kind.LIFESPAN, target.handle, target)


def on_asyncio_streams(handler: Handler, name: str, limit: int) -> Handler:
    """Return what serves `handler` by asyncio's own streams, whose buffer limit in bytes is `limit`.

    What needs no stream stays as it is. Raises ServiceError for a handler that takes prefork's stream.
    """
    if handler.kind in (Kind.STREAM, Kind.LIFESPAN):
        raise ServiceError(
            f"service {name}: a {handler.kind.value} takes prefork's stream, which --streams asyncio does not have "
            "(write handle(reader, writer), or leave the option out)"
        )
    if handler.kind not in (Kind.ASYNCIO, Kind.CALLBACK):
        return handler

    def make() -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit), handler.call)

    return Handler(Kind.PROTOCOL, make)


def _is(kind: Callable[[Any], bool], target: Any) -> bool:
    while isinstance(target, functools.partial):
        target = target.func
    return kind(target) or kind(type(target).__call__)


def _required_positional(target: Callable[..., Any]) -> int:
    """Return the number of positional parameters that must be given.

    Return -1 if it cannot be known, if any number would do, or if a keyword must be given as well.
    """
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
