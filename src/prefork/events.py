"""Everything that can be observed, as one catalogue: each event is a class, and its text is the log line.

Code that notices something makes an event and hands it to an `Emit`; it never logs by itself. Logs (and later metrics)
are subscribers in `observe/`. Texts are built from `printable` wherever a peer had a hand in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

FIELD_LIMIT = 256


def printable(value: object, limit: int = FIELD_LIMIT) -> str:
    """`value` as printable ASCII of at most `limit` characters: nothing a peer sends reaches a terminal raw."""
    text = str(value)[: limit + 1]
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape", "replace").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


class Event:
    """Base of the catalogue. `level` is a `logging` level; `rated` events are held to a line per cause and second."""

    __slots__ = ()
    level: ClassVar[int] = logging.INFO
    rated: ClassVar[bool] = False


Emit = Callable[[Event], None]


def log(event: Event) -> None:
    """An `Emit` for who has set up nothing else: to the logger `prefork`."""
    logger = logging.getLogger("prefork")
    if logger.isEnabledFor(event.level):
        detail = getattr(event, "traceback", "")
        logger.log(event.level, "%s%s", event, f"\n{detail}" if detail else "")


# --- one worker's connections -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """The handler of one connection raised; `traceback` is the whole of it, its lines made printable one by one."""

    level: ClassVar[int] = logging.ERROR
    rated: ClassVar[bool] = True
    peer: str
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"handler failed for {self.peer}: {self.error}"


@dataclass(frozen=True, slots=True)
class ConnectionLost(Event):
    """A handler let pass that its peer left, or broke the protocol: nobody's bug."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"connection of {self.peer} ended: {self.reason}"


@dataclass(frozen=True, slots=True)
class HandshakeFailed(Event):
    """A peer did not complete the TLS handshake."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"TLS handshake with {self.peer} failed: {self.reason}"


@dataclass(frozen=True, slots=True)
class ConnectionAborted(Event):
    """prefork itself cut a connection off: too much unsent, or a deadline passed."""

    level: ClassVar[int] = logging.WARNING
    rated: ClassVar[bool] = True
    peer: str
    reason: str

    def __str__(self) -> str:
        return f"aborted connection of {self.peer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class AcceptPaused(Event):
    """No room to accept (descriptors or memory): accepting rests until a connection closes, or a moment has passed."""

    level: ClassVar[int] = logging.WARNING
    rated: ClassVar[bool] = True
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"accepting on {self.listener} paused: {self.reason}; it goes on as soon as a connection closes"


@dataclass(frozen=True, slots=True)
class AcceptSkipped(Event):
    """A queued connection died before it was accepted."""

    level: ClassVar[int] = logging.DEBUG
    rated: ClassVar[bool] = True
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"a connection on {self.listener} was gone before it was accepted: {self.reason}"


@dataclass(frozen=True, slots=True)
class ListenerBroken(Event):
    """A listening socket failed for good; the server that owns it stops."""

    level: ClassVar[int] = logging.ERROR
    listener: str
    reason: str

    def __str__(self) -> str:
        return f"listening socket {self.listener} failed: {self.reason}"
