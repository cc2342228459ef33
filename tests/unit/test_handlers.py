"""The kind of a handler is told only by its shape, and an unsupported one is rejected in one line."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from prefork.errors import ServiceError
from prefork.net.handlers import Kind, classify


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
    ],
)
def test_each_kind_of_handler_is_recognised(target: object, kind: Kind) -> None:
    handler = classify(target)
    assert handler.kind is kind
    assert classify(handler) is handler


class HalfService:
    async def start(self) -> None: ...
    def handle(self, stream: Any) -> None: ...
    async def stop(self) -> None: ...


class HandleOnly:
    async def handle(self, stream: Any) -> None: ...


async def generator(stream: Any) -> Any:
    yield await stream.read()


async def nothing() -> None: ...
async def three(a: Any, b: Any, c: Any) -> None: ...
async def anything(*args: Any) -> None: ...
async def keyword(stream: Any, *, token: str) -> None: ...


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (5, "is not callable"),
        (None, "is not callable"),
        (nothing, "nothing takes no positional parameters"),
        (three, "three takes 3 positional parameters"),
        (anything, "unclear number"),
        (keyword, "unclear number"),
        (lambda a, b, c: None, "takes 3 positional parameters and is not async"),
        (lambda stream: None, "takes 1 positional parameter and is not async"),
        (generator, "generator is an async generator: remove its `yield`"),
        (Service, "Service is a class, and no asyncio.Protocol: name an instance, as in service = Service()"),
        (HandleOnly(), "the object of type HandleOnly has no `start` and no `stop`"),
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
