"""Tell the failures of a connection from those of its handler: a stream marks each exception that it raises.

The type of an exception says nothing: a ConnectionResetError may be that of the handler's database. What follows from
the answer is in connection.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol, TypeVar

from ..errors import LineTooLongError

Raised = TypeVar("Raised", bound=BaseException)
#: The attribute of an exception that names its stream. Numbers and no reference, because exceptions are kept, copied
#: and pickled by services.
_MARK = "_prefork_stream"


class Identified(Protocol):
    """The part of a stream that tells it from all others of the process."""

    @property
    def id(self) -> int: ...
    def exception(self) -> BaseException | None: ...


def mark(error: Raised, stream: Identified) -> Raised:
    """Return `error`, marked as one that `stream` raises."""
    vars(error)[_MARK] = (id(stream), stream.id)
    return error


def is_own(error: BaseException, stream: Identified) -> bool:
    """Return whether all of `error` comes from `stream`: raised by it, what broke it, or `raise X from` one of these.

    An ExceptionGroup is the stream's if each of its parts is. An exception that was raised while another was handled
    is a failure of the handler, unless it names the other as its cause.
    """
    return all(_own_cause(each, stream) is not None for each in _parts(error))


def exceeded_limit(error: BaseException, stream: Identified) -> bool:
    """Return whether `error` is one of `stream` that says: what the peer sent is longer than the read limit."""
    causes = [_own_cause(each, stream) for each in _parts(error)]
    return any(isinstance(cause, LineTooLongError | asyncio.LimitOverrunError) for cause in causes)


def _own_cause(error: BaseException, stream: Identified) -> BaseException | None:
    """Return the exception of `stream` that `error` is or names as its cause, at whatever depth."""
    broken_by = stream.exception()
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if cause is broken_by or vars(cause).get(_MARK) == (id(stream), stream.id):
            return cause
        # A service can make a circle of causes.
        seen.add(id(cause))
        cause = cause.__cause__
    return None


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions of a group, at whatever depth; `error` itself if it is none."""
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        else:
            yield each
