"""The kind of a handler is told only by its shape, and an unsupported one is rejected in one line."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from prefork.errors import ServiceError
from prefork.net.handlers import Kind, classify, classify_made


async def stream_handler(stream: Any) -> None: ...


async def stream_handler_with_options(stream: Any, greeting: str = "hi", *, loud: bool = False) -> None: ...


async def asyncio_handler(reader: Any, writer: Any) -> None: ...


def asyncio_callback(reader: Any, writer: Any) -> None: ...


class Echo(asyncio.Protocol):
    pass


class Buffered(asyncio.BufferedProtocol):
    pass


class Service:
    async def start(self) -> None: ...
    async def handle(self, stream: Any) -> None: ...
    async def stop(self) -> None: ...
    async def both(self, reader: Any, writer: Any) -> None: ...
    def make(self) -> Echo:
        return Echo()


class Protocols:
    async def start(self) -> None: ...
    def protocol(self) -> Echo:
        return Echo()

    async def stop(self) -> None: ...


class Draining(Protocols):
    def drain(self) -> None: ...


class NamedEcho(Echo):
    def __init__(self, name: str) -> None: ...


async def factory(name: str = "") -> Any:
    return Service() if name else None


async def one_of_two(first: Any = None) -> Any:
    return first or None


async def named_factory(name: str) -> Any:
    return NamedEcho(name)


async def failing_factory() -> Any:
    raise RuntimeError("no database")


class Callable_:
    async def __call__(self, stream: Any) -> None: ...


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (stream_handler, Kind.STREAM),
        (stream_handler_with_options, Kind.STREAM),
        (functools.partial(asyncio_handler, None), Kind.STREAM),
        (functools.partial(asyncio_handler, writer=None), Kind.STREAM),
        (asyncio_handler, Kind.ASYNCIO),
        (Service().both, Kind.ASYNCIO),
        (asyncio_callback, Kind.CALLBACK),
        (lambda reader, writer: None, Kind.CALLBACK),
        (Service().handle, Kind.STREAM),
        (Callable_(), Kind.STREAM),
        (Echo, Kind.PROTOCOL),
        (Buffered, Kind.PROTOCOL),
        (lambda: Echo(), Kind.PROTOCOL),
        (functools.partial(Echo), Kind.PROTOCOL),
        (Service().make, Kind.PROTOCOL),
        (Service(), Kind.LIFESPAN),
        (Protocols(), Kind.PROTOCOL_LIFESPAN),
        (Draining(), Kind.PROTOCOL_LIFESPAN),
        (factory, Kind.FACTORY),
        (failing_factory, Kind.FACTORY),
        (one_of_two, Kind.FACTORY),
        (functools.partial(named_factory, "echo"), Kind.FACTORY),
        (functools.partial(NamedEcho, "echo"), Kind.PROTOCOL),
    ],
)
def test_each_kind_of_handler_is_recognised(target: object, kind: Kind) -> None:
    handler = classify(target)
    assert handler.kind is kind
    assert classify(handler) is handler


class Datagrams(asyncio.DatagramProtocol): ...


async def returns_a_number() -> int:
    if asyncio.get_running_loop().get_debug():
        return 5
    return 6


class HalfService:
    async def start(self) -> None: ...
    def handle(self, stream: Any) -> None: ...
    async def stop(self) -> None: ...


class Both(Service):
    def protocol(self) -> Echo:
        return Echo()


class AsyncProtocol(Protocols):
    async def protocol(self) -> Echo:  # type: ignore[override]  # wrong on purpose
        return Echo()


class ProtocolForPeer(Protocols):
    def protocol(self, peer: str) -> Echo:  # type: ignore[override]  # wrong on purpose
        return Echo()


class DrainsSomething(Protocols):
    def drain(self, timeout: float) -> None: ...


class DrainIsNoMethod(Protocols):
    drain = True


class HandleOnly:
    async def handle(self, stream: Any) -> None: ...


async def generator(stream: Any) -> Any:
    yield await stream.read()


async def three(a: Any, b: Any, c: Any) -> None: ...
async def anything(*args: Any) -> None: ...
async def keyword(stream: Any, *, token: str) -> None: ...


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (5, "is not callable"),
        (None, "is not callable"),
        (three, "three takes 3 positional parameters"),
        (anything, "unclear number"),
        (keyword, "unclear number"),
        (lambda a, b, c: None, "takes 3 positional parameters and is not async"),
        (lambda stream: None, "takes 1 positional parameter and is not async"),
        (generator, "generator is an async generator: remove its `yield`"),
        (Datagrams, "Datagrams is no protocol of connections: prefork serves TCP and unix stream sockets"),
        (NamedEcho, "NamedEcho() takes 1 positional parameter: name a factory without parameters, as in service = "),
        (Service().start, "Service.start takes no parameters, as a worker factory does, and returns nothing"),
        (functools.partial(stream_handler, None), "takes no parameters, as a worker factory does, and returns nothing"),
        (returns_a_number, "returns_a_number takes no parameters, as a worker factory does, and returns 5"),
        (lambda: None, "takes no parameters, as a protocol factory does, and returns nothing"),
        (Service, "Service is a class, and no asyncio.Protocol: name an instance, as in service = Service()"),
        (HandleOnly(), "the object of type HandleOnly has no `start` and no `stop`"),
        (object.__new__(type("Idle", (), {"start": 1, "stop": 1})), "has no `handle` or `protocol`"),
        (Both(), "the object of type Both has both `handle` and `protocol`: a connection is served by one of them"),
        (AsyncProtocol(), "`protocol` of the object of type AsyncProtocol must be def protocol(), which is not async"),
        (ProtocolForPeer(), "must be def protocol(), which is not async"),
        (DrainsSomething(), "`drain` of the object of type DrainsSomething must be a method without parameters"),
        (DrainIsNoMethod(), "must be a method without parameters"),
        (HalfService(), "`handle` of the object of type HalfService must be async def handle(stream)"),
    ],
)
def test_an_unsupported_handler_is_rejected_in_one_line(target: object, text: str) -> None:
    with pytest.raises(ServiceError) as caught:
        classify(target)
    message = str(caught.value)
    assert text in message
    assert "expected async def handle(stream)" in message
    assert "\n" not in message


def test_what_a_worker_factory_returns_is_classified_in_its_name() -> None:
    assert classify_made(Protocols(), "app:make").kind is Kind.PROTOCOL_LIFESPAN
    with pytest.raises(
        ServiceError, match="^service app:make: the worker factory returned what cannot be served: .*5|int"
    ):
        classify_made(5, "app:make")
    with pytest.raises(ServiceError) as caught:
        classify_made(factory, "app:make")
    assert str(caught.value) == "service app:make: the worker factory returned factory, another worker factory"
