"""The subscribers of this process: the service's callbacks, and what servers tell them.

Servers look at `callbacks` first: without a subscriber an event costs one comparison, and no object is made. Nothing
that a callback does or raises reaches the server.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from ..core.ended_connection import EndedConnection
from ..events import Emit, SubscriberFailed
from ..text import describe_error, escape_ascii, escaped_traceback, format_address

if TYPE_CHECKING:
    from .service_events import ServiceEvent

Callback: TypeAlias = "Callable[[ServiceEvent], object]"


class _Subscription:
    """One call of `subscribe`: the same callback may be subscribed twice."""

    __slots__ = ("callback", "has_failed")

    def __init__(self, callback: Callback) -> None:
        self.callback = callback
        self.has_failed = False


#: Replaced, never changed: a callback may unsubscribe while events are told.
callbacks: tuple[_Subscription, ...] = ()


def subscribe(callback: Callback) -> Callable[[], None]:
    """Call `callback` with each event of the servers in this process, and return a function that ends that.

    The events are `ConnectionOpened`, `ConnectionClosed`, `HandlerFailed` and `Draining`, in the order in which they
    happen. Later versions may have more. The callback is called in the event loop, so it must return at once. What it
    raises is logged the first time and otherwise ignored. In a program that calls `prefork.serve`, workers inherit the
    subscriptions that exist before. Raises TypeError for a coroutine function, which would have to be awaited.
    """
    global callbacks
    if inspect.iscoroutinefunction(callback) or not callable(callback):
        raise TypeError("subscribe() takes a plain function of one argument, which is called and not awaited")
    subscription = _Subscription(callback)
    callbacks = (*callbacks, subscription)

    def unsubscribe() -> None:
        global callbacks
        callbacks = tuple(each for each in callbacks if each is not subscription)

    return unsubscribe


# --- for servers ------------------------------------------------------------------------------------------------------


def tell_opened(number: int, address: object, local: object, proxy: object, emit: Emit) -> None:
    from .service_events import ConnectionOpened

    _tell(ConnectionOpened(number, format_address(address), _text(local), _text(proxy)), emit)


def tell_closed(ended: EndedConnection, emit: Emit) -> None:
    from .service_events import ConnectionClosed

    peer, local = format_address(ended.address), _text(ended.local)
    _tell(ConnectionClosed(ended.number, peer, local, *ended[3:7], str(ended.reason), _text(ended.proxy)), emit)


def tell_failed(number: int, peer: str, exception: BaseException, emit: Emit) -> None:
    from .service_events import HandlerFailed

    _tell(HandlerFailed(number, peer, exception), emit)


def tell_draining(emit: Emit) -> None:
    from .service_events import Draining

    _tell(Draining(), emit)


def _tell(event: ServiceEvent, emit: Emit) -> None:
    for subscription in callbacks:
        try:
            subscription.callback(event)
        except GeneratorExit:
            raise
        except BaseException as exc:
            if not subscription.has_failed:
                subscription.has_failed = True
                name = getattr(subscription.callback, "__qualname__", type(subscription.callback).__qualname__)
                error = escape_ascii(describe_error(exc))
                emit(SubscriberFailed(escape_ascii(name), error, escaped_traceback(exc)).because_of(exc))


def _text(address: object) -> str:
    return "" if address is None else format_address(address)
