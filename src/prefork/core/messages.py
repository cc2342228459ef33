"""The messages from a process to the supervisor that started it: lines of JSON, each small enough for one write.

A worker sends them over its status pipe, the watcher of sources over its own, and a new supervisor over its socket
pair. Pure: bytes in, values out. The sender may be broken or hostile, so a line that cannot be read is dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

#: Bytes that a pipe takes at once or not at all (PIPE_BUF, pipe(7)), so that lines cannot mix.
LIMIT = 4096


@dataclass(frozen=True, slots=True)
class ReadyMessage:
    """The worker accepts; from a supervisor: all of its workers do."""


@dataclass(frozen=True, slots=True)
class ListeningMessage:
    """The program that the worker runs listens on the socket with this inode."""

    socket: int


@dataclass(frozen=True, slots=True)
class UnableMessage:
    """The process cannot start; the reason is for a person."""

    reason: str


@dataclass(frozen=True, slots=True)
class RecycleMessage:
    """The worker has reached a recycling limit, and goes on serving until it is replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class LimitTooLowMessage:
    """The worker has served nothing yet, and its `rss` bytes are beyond the `limit` at which it is recycled."""

    rss: int
    limit: int


@dataclass(frozen=True, slots=True)
class StoppedAcceptingMessage:
    """The worker does not accept any more."""


@dataclass(frozen=True, slots=True)
class StoppingMessage:
    """The supervisor was asked to stop; `at_once` means without a drain."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class ReopenLogsMessage:
    """The supervisor was told to open its log files again: a predecessor that drains has the same ones."""


@dataclass(frozen=True, slots=True)
class LeasesGivenUpMessage:
    """No worker of the supervisor that was replaced holds a lease any more, or will get one."""


@dataclass(frozen=True, slots=True)
class SettledMessage:
    """The supervisor that was replaced has given up its sockets, and will not serve again."""


@dataclass(frozen=True, slots=True)
class ChangedMessage:
    """Sources have changed; `files` says which, for a log. Only the process that watches them sends it."""

    files: str


@dataclass(frozen=True, slots=True)
class StackLine:
    """A line of plain text from faulthandler, which writes to the same pipe and works in a hung process."""

    text: str


Message = (
    ReadyMessage
    | ListeningMessage
    | UnableMessage
    | RecycleMessage
    | LimitTooLowMessage
    | StoppedAcceptingMessage
    | StoppingMessage
    | ReopenLogsMessage
    | LeasesGivenUpMessage
    | SettledMessage
    | ChangedMessage
    | StackLine
)


def encode(message: Message) -> bytes:
    """Return the message as one line of at most LIMIT bytes; a text that is too long is cut.

    Raises TypeError for a StackLine, which only faulthandler writes.
    """
    match message:
        case ReadyMessage():
            return _line({"ready": True})
        case ListeningMessage():
            return _line({"listening": message.socket})
        case LimitTooLowMessage():
            return _line({"rss": message.rss, "limit": message.limit})
        case StoppedAcceptingMessage():
            return _line({"stopped_accepting": True})
        case StoppingMessage():
            return _line({"stopping": True, "at_once": message.at_once})
        case ReopenLogsMessage():
            return _line({"reopen_logs": True})
        case LeasesGivenUpMessage():
            return _line({"leases_given_up": True})
        case SettledMessage():
            return _line({"settled": True})
        case StackLine():
            raise TypeError("a StackLine is written by faulthandler only")
        case UnableMessage():
            return _cut("unable", message.reason)
        case RecycleMessage():
            return _cut("recycle", message.reason)
        case ChangedMessage():
            return _cut("changed", message.files)


def _cut(key: str, text: str) -> bytes:
    while len(line := _line({key: text})) > LIMIT:
        text = text[: len(text) * 3 // 4]
    return line


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


class Decoder:
    """Assembles messages from what a pipe delivers. Holds at most one line."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete now."""
        *lines, partial = (self._partial + data).split(b"\n")
        self._partial = partial[: LIMIT + 1]
        return [message for line in lines if len(line) <= LIMIT and (message := _decode(line)) is not None]


def _decode(line: bytes) -> Message | None:
    if not line.startswith(b"{"):
        return StackLine(line.decode("utf-8", "replace")) if line else None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        # json recurses: a few thousand nested brackets raise RecursionError.
        return None
    match value:
        case {"ready": True}:
            return ReadyMessage()
        case {"listening": int(socket)}:
            return ListeningMessage(socket)
        case {"rss": int(rss), "limit": int(limit)} if 0 <= limit <= rss < 2**63:
            return LimitTooLowMessage(rss, limit)
        case {"stopped_accepting": True}:
            return StoppedAcceptingMessage()
        case {"reopen_logs": True}:
            return ReopenLogsMessage()
        case {"leases_given_up": True}:
            return LeasesGivenUpMessage()
        case {"settled": True}:
            return SettledMessage()
        case {"stopping": True}:
            return StoppingMessage(value.get("at_once") is True)
        case {"unable": str(reason)}:
            return UnableMessage(reason)
        case {"recycle": str(reason)}:
            return RecycleMessage(reason)
        case {"changed": str(files)}:
            return ChangedMessage(files)
    return None
