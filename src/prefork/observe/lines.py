"""Log records as lines of text, and what both formats have in common.

One record is one line; a traceback follows it in lines that are indented. Whatever could end a line or steer a terminal
is escaped, in the service's own messages too: it logs what peers sent.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime

from ..events import Event
from ..text import escape_controls

#: The longest message, and the longest line of a traceback, in characters.
MESSAGE_LIMIT = 2048
DETAIL_LIMIT = 512
#: The most lines of a traceback: the first that lead into it, and the last, which say what happened.
FIRST_DETAILS = 20
LAST_DETAILS = 100

INDENT = "    "


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that a line comes from: a worker by its number, or the supervisor (None)."""

    worker: int | None

    def __str__(self) -> str:
        return "supervisor" if self.worker is None else f"worker {self.worker}"


class TextFormatter(logging.Formatter):
    """`2026-11-24T11:02:03.123+00:00 info worker 2[4711]: message`; time is local, with its offset (RFC 3339)."""

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self._origin = origin

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record, without the last newline."""
        # The two that need no name: prefork says what it does, and the root logger is nobody in particular.
        name = "" if record.name in ("prefork", "root") else f"{escape_controls(record.name, 64)}: "
        start = f"{timestamp(record)} {level_name(record)} {self._origin}[{os.getpid()}]: {name}"
        line = start + escape_controls(record.getMessage(), MESSAGE_LIMIT)
        return f"\n{INDENT}".join([line, *details(record)])


def timestamp(record: logging.LogRecord) -> str:
    """When a record was made: wall-clock time of this place, to the millisecond, with the offset from UTC."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def level_name(record: logging.LogRecord) -> str:
    """`debug`, `info`, `warning`, `error`; what else the service logs keeps its own name."""
    return escape_controls(record.levelname.lower(), 32)


def event_of(record: logging.LogRecord) -> Event | None:
    """The event that a record was made of; None for the service's own records."""
    event = getattr(record, "_event", None)
    return event if isinstance(event, Event) else None


def details(record: logging.LogRecord) -> list[str]:
    """The traceback and the stack that belong to a record, line by line, made harmless and bounded."""
    parts = [getattr(event_of(record), "traceback", "")]
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(logging.Formatter().formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    parts.append(record.stack_info or "")
    lines = [line for part in parts if part for line in part.split("\n")]
    left_out = len(lines) - FIRST_DETAILS - LAST_DETAILS
    if left_out > 0:
        lines[FIRST_DETAILS:-LAST_DETAILS] = [f"... {left_out} lines left out ..."]
    return [escape_controls(line, DETAIL_LIMIT) for line in lines]
