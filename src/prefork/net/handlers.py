"""What a service may be, as a type and as a check by its signature: see `Kind` for all of them.

Nothing of the service is called here, except by the methods of `Handler`.
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
from .return_values import constant_result

if TYPE_CHECKING:
    from .stream import Stream


class Lifespan(Protocol):
    """A service with a beginning and an end: `start` runs before its first connection, `stop` after its last.

    It may also have a `drain()`, plain or async: it is called when the server has stopped accepting.
    """

    async def start(self) -> object: ...
    async def handle(self, stream: Stream, /) -> object: ...
    async def stop(self) -> object: ...


class ProtocolLifespan(Protocol):
    """A service like `Lifespan`, whose connections are served by protocols: `protocol` makes one for each of them.

    `protocol` is called in the loop, and only after `start`. Each protocol may also have a `drain()`.
    """

    async def start(self) -> object: ...
    def protocol(self) -> asyncio.BaseProtocol: ...
    async def stop(self) -> object: ...


StreamHandler: TypeAlias = "Callable[[Stream], Coroutine[Any, Any, object]]"
AsyncioHandler: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]"
ProtocolFactory: TypeAlias = "Callable[[], asyncio.BaseProtocol]"
#: What serves connections.
ConnectionService: TypeAlias = "StreamHandler | AsyncioHandler | ProtocolFactory | Lifespan | ProtocolLifespan"
#: A protocol factory, or a worker factory: what makes a service, once for each worker. They are one type, because mypy
#: would take the lambda of one for the other.
AnyFactory: TypeAlias = "Callable[[], asyncio.BaseProtocol | Coroutine[Any, Any, ConnectionService]]"
#: What can be served. A type checker finds a handler of another shape.
Service: TypeAlias = "StreamHandler | AsyncioHandler | AnyFactory | Lifespan | ProtocolLifespan"


class Kind(enum.Enum):
    """What a service is, and so how it is called."""

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
    PROTOCOL_LIFESPAN = "lifespan object with protocols"
    """an object with `async` `start()` and `stop()`, and a `protocol()` that makes a protocol"""
    FACTORY = "worker factory"
    """`async def factory()`, which returns one of the others"""


@dataclass(frozen=True, slots=True)
class Handler:
    """A service that was classified, and how to call it."""

    kind: Kind
    call: Callable[..., Any]
    """Called for each connection; a worker factory is called once."""
    lifespan: Any = None

    @property
    def has_start(self) -> bool:
        """Whether something of the service has to be awaited before its first connection."""
        return self.lifespan is not None or self.kind is Kind.FACTORY

    async def start(self) -> None:
        if self.lifespan is not None:
            await self.lifespan.start()

    async def stop(self) -> None:
        if self.lifespan is not None:
            await self.lifespan.stop()


_EXPECTED = (
    "expected async def handle(stream), async def handle(reader, writer), an asyncio.Protocol class or factory, "
    "an object with async start, handle and stop, one with async start, protocol() and async stop, "
    "or async def factory() that returns one of these"
)


def classify(target: object, name: str = "") -> Handler:
    """Return the handler that `target` is; `name` is what the user called it by, if anything.

    Raises ServiceError for anything else. The message says what is wrong and what is expected.
    """
    return _classify_named(target, f"service {name}: " if name else "")


def classify_made(made: object, name: str = "") -> Handler:
    """Return the handler that a worker factory has made; `name` is what the user called the factory by.

    Raises ServiceError as `classify` does, and for a second factory.
    """
    prefix = f"service {name}: " if name else ""
    handler = _classify_named(made, f"{prefix}the worker factory returned what cannot be served: ")
    if handler.kind is Kind.FACTORY:
        raise ServiceError(f"{prefix}the worker factory returned {_name(made)}, another worker factory")
    return handler


def _classify_named(target: object, prefix: str) -> Handler:
    try:
        return _classify(target)
    except ServiceError as exc:
        raise ServiceError(f"{prefix}{exc}; {_EXPECTED}") from None


def _classify(target: object) -> Handler:
    if isinstance(target, Handler):
        return target
    name = _name(target)
    if isinstance(target, type):
        if issubclass(target, asyncio.BaseProtocol):
            _require_stream_protocol(target)
            return Handler(Kind.PROTOCOL, target)
        raise ServiceError(f"{name} is a class, and no asyncio.Protocol: name an instance, as in service = {name}()")
    missing = _missing(target)
    if not missing:
        return _lifespan(target)
    if not callable(target):
        partial = len(missing) < _LIFESPAN_PARTS
        raise ServiceError(f"{name} has no {' and no '.join(missing)}" if partial else f"{name} is not callable")
    if _is(inspect.isasyncgenfunction, target):
        raise ServiceError(f"{name} is an async generator: remove its `yield`")
    count = _required_positional(target)
    if _is(inspect.iscoroutinefunction, target):
        if count == 0:
            _require_result(target, Kind.FACTORY)
            return Handler(Kind.FACTORY, target)
        if count == 1:
            return Handler(Kind.STREAM, target)
        if count == 2:
            return Handler(Kind.ASYNCIO, target)
        raise ServiceError(f"{name} takes {_parameters(count)}")
    if count == 0:
        _require_result(target, Kind.PROTOCOL)
        return Handler(Kind.PROTOCOL, target)
    if count == 2:
        return Handler(Kind.CALLBACK, target)
    raise ServiceError(f"{name} takes {_parameters(count)} and is not async")


def _require_stream_protocol(target: type[asyncio.BaseProtocol]) -> None:
    name = _name(target)
    if issubclass(target, asyncio.DatagramProtocol | asyncio.SubprocessProtocol):
        raise ServiceError(f"{name} is no protocol of connections: prefork serves TCP and unix stream sockets")
    if (count := _required_positional(target)) > 0:
        cure = f"name a factory without parameters, as in service = functools.partial({name}, ...)"
        raise ServiceError(f"{name}() takes {_parameters(count)}: {cure}")


def _require_result(target: object, kind: Kind) -> None:
    """Raise ServiceError if a factory never returns what could be served."""
    if result := constant_result(target):
        role = "as a worker factory does" if kind is Kind.FACTORY else "as a protocol factory does"
        raise ServiceError(f"{_name(target)} takes no parameters, {role}, and returns {result}")


#: `start`, `stop`, and one of `handle` and `protocol`.
_LIFESPAN_PARTS = 3


def _missing(target: object) -> list[str]:
    """Return what `target` lacks of a lifespan object."""
    missing = [f"`{method}`" for method in ("start", "stop") if not hasattr(target, method)]
    if not hasattr(target, "handle") and not hasattr(target, "protocol"):
        missing.append("`handle` or `protocol`")
    return missing


def _lifespan(target: Any) -> Handler:
    if hasattr(target, "handle") and hasattr(target, "protocol"):
        raise ServiceError(f"{_name(target)} has both `handle` and `protocol`: a connection is served by one of them")
    for name in ("start", "stop"):
        _require_method(target, name)
    if hasattr(target, "drain") and not (callable(target.drain) and _required_positional(target.drain) == 0):
        raise ServiceError(f"`drain` of {_name(target)} must be a method without parameters")
    if hasattr(target, "handle"):
        _require_method(target, "handle", "stream")
        return Handler(Kind.LIFESPAN, target.handle, target)
    make = target.protocol
    if not callable(make) or _is(inspect.iscoroutinefunction, make) or _required_positional(make) != 0:
        raise ServiceError(f"`protocol` of {_name(target)} must be def protocol(), which is not async")
    return Handler(Kind.PROTOCOL_LIFESPAN, make, target)


def _require_method(target: object, name: str, parameter: str = "") -> None:
    method = getattr(target, name)
    is_async = callable(method) and _is(inspect.iscoroutinefunction, method)
    if not is_async or _required_positional(method) != bool(parameter):
        raise ServiceError(f"`{name}` of {_name(target)} must be async def {name}({parameter})")


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
