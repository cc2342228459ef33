"""What a process tells the supervisor that started it: lines of JSON, each small enough to be written at once.

A worker does over its status pipe, and so does a supervisor that is to take over. Pure: bytes in, values out. Nobody is
trusted to be well: what cannot be read is dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

#: A pipe takes so many bytes at once or not at all (PIPE_BUF, pipe(7)), so lines cannot mix.
LIMIT = 4096


@dataclass(frozen=True, slots=True)
class ReadyMessage:
    """I accept; a supervisor: all of my workers do."""


@dataclass(frozen=True, slots=True)
class UnableMessage:
    """I cannot start, and why; for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecycleMessage:
    """I have served enough, and why; I go on until I am replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class DrainingMessage:
    """I do not accept any more."""


@dataclass(frozen=True, slots=True)
class StoppingMessage:
    """I, a supervisor, was asked to stop; `at_once`: without a drain."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class StackLine:
    """A line of faulthandler's, which writes to the same pipe: it knows no JSON, and works in a hung process."""

    text: str


Message = ReadyMessage | UnableMessage | RecycleMessage | DrainingMessage | StoppingMessage | StackLine

_PLAIN: dict[str, Message] = {
    "ready": ReadyMessage(),
    "draining": DrainingMessage(),
}


def encode(message: Message) -> bytes:
    """One line. Raises TypeError for what is none of ours."""
    for name, plain in _PLAIN.items():
        if message == plain:
            return json.dumps({name: True}).encode() + b"\n"
    if isinstance(message, StoppingMessage):
        return json.dumps({"stopping": True, "at_once": message.at_once}).encode() + b"\n"
    if not isinstance(message, UnableMessage | RecycleMessage):
        raise TypeError(f"{type(message).__name__} is not for us to send")
    key = "unable" if isinstance(message, UnableMessage) else "spent"
    reason = message.reason
    while len(line := json.dumps({key: reason}).encode() + b"\n") > LIMIT:
        reason = reason[: len(reason) * 3 // 4]
    return line


class Decoder:
    """Puts lines together from what the pipe gives. Holds at most one line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: LIMIT + 1]
        return [message for line in lines if len(line) <= LIMIT and (message := _decode(line)) is not None]


def _decode(line: bytes) -> Message | None:
    if not line.startswith(b"{"):
        return StackLine(line.decode("utf-8", "replace")) if line else None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        # The second for what is nested deeply: a few thousand brackets are enough.
        return None
    match value:
        case {"ready": True} | {"draining": True}:
            return next(plain for name, plain in _PLAIN.items() if name in value)
        case {"stopping": True}:
            return StoppingMessage(value.get("at_once") is True)
        case {"unable": str(reason)}:
            return UnableMessage(reason)
        case {"spent": str(reason)}:
            return RecycleMessage(reason)
    return None
