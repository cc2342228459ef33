"""Notice that a protocol's callback has failed: a loop tells only its exception handler, which may be the service's.

What is counted then is in protocol_connection.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

Failed = Callable[[BaseException], object]


class ProtocolFailures:
    """Watches a loop from its construction until `close`; `by_descriptor` has what to call for each connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.by_descriptor: dict[int, Failed] = {}
        self._loop = cast("Any", loop)
        self._original: Callable[[dict[str, Any]], None] = loop.call_exception_handler
        # Not by `set_exception_handler`, because the loop has one handler and the service may set it at any time.
        self._replacement = self._call
        self._loop.call_exception_handler = self._replacement

    def close(self) -> None:
        """Watch no more, unless another watch was begun meanwhile, which ends first."""
        if self._loop.call_exception_handler is self._replacement:
            del self._loop.call_exception_handler

    def _call(self, context: dict[str, Any]) -> None:
        failed = self.by_descriptor.get(_descriptor_of(context))
        if failed is not None:
            failed(context["exception"])
        self._original(context)


def _descriptor_of(context: dict[str, Any]) -> int:
    """Return the descriptor of the connection that an exception is about; -1 if there is none."""
    # By the descriptor, because below TLS the transport is one that no protocol has seen.
    transport = context.get("transport")
    if transport is None or not isinstance(context.get("exception"), BaseException):
        return -1
    try:
        found: int = transport.get_extra_info("socket").fileno()
    except Exception:
        # A service may report what it likes to the handler.
        return -1
    return found
