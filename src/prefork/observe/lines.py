"""Format log records as lines of text, and hold what the text and JSON formats share.

A record is one line, and a traceback follows it in indented lines. Characters that could end a line or control a
terminal are escaped, in the service's messages too, because they may contain what peers sent.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from ..events import Event
from ..text import escape_controls

#: Longest message, and longest line of a traceback, in characters.
MAX_MESSAGE = 2048
MAX_DETAIL = 512
#: Lines that are kept of a long traceback: the first ones lead into it, the last ones say what happened.
FIRST_DETAILS = 20
LAST_DETAILS = 100

INDENT = "    "

#: Select Graphic Rendition (ECMA-48, 8.3.117) of the levels that are to be seen at a glance.
_COLOURS = {"debug": "2", "warning": "33", "error": "31", "critical": "31"}


@dataclass(frozen=True, slots=True)
class Origin:
    """The process that a line comes from: a worker by its slot, or the `process` of this name."""

    worker: int | None
    process: str = "supervisor"

    def __str__(self) -> str:
        return self.process if self.worker is None else f"worker {self.worker}"


class TextFormatter(logging.Formatter):
    """Formats lines like `2026-11-24T11:02:03.123+00:00 info worker 2[4711]: message`, in local time (RFC 3339)."""

    def __init__(self, origin: Origin, colours: bool = False) -> None:
        super().__init__()
        self._origin = origin
        self._colours = _COLOURS if colours else {}

    def format(self, record: logging.LogRecord) -> str:
        # Two loggers need no name: prefork's messages are clear without it, and the root logger's name says nothing.
        name = "" if record.name in ("prefork", "root") else f"{escape_controls(record.name, 64)}: "
        level = level_name(record)
        colour = self._colours.get(level)
        level = level if colour is None else f"\x1b[{colour}m{level}\x1b[0m"
        start = f"{timestamp(record)} {level} {self._origin}[{os.getpid()}]: {name}"
        line = start + escape_controls(record.getMessage(), MAX_MESSAGE)
        return f"\n{INDENT}".join([line, *details(record)])


def has_colours(stream: TextIO | None) -> bool:
    """Return whether the levels in lines for `stream` have colours: on a terminal, unless the environment says no.

    NO_COLOR (no-color.org) and FORCE_COLOR (force-color.org) decide if they are set and not empty.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):
        # An object that only has write(), or a closed file.
        return False


def timestamp(record: logging.LogRecord) -> str:
    """Return when a record was made: local time in milliseconds, with the offset from UTC (RFC 3339)."""
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def level_name(record: logging.LogRecord) -> str:
    """Return `debug`, `info`, `warning` or `error`; the service's own levels keep their names."""
    return escape_controls(record.levelname.lower(), 32)


def event_of(record: logging.LogRecord) -> Event | None:
    """Return the event that a record was made from; None for the service's own records."""
    event = getattr(record, "_event", None)
    return event if isinstance(event, Event) else None


def details(record: logging.LogRecord) -> list[str]:
    """Return the lines of a record's traceback and stack, escaped and bounded."""
    event = event_of(record)
    trace = record.exc_text
    if event is not None:
        # What the record has is for other handlers.
        trace = getattr(event, "traceback", "")
    elif record.exc_info and record.exc_info[0] is not None:
        trace = logging.Formatter().formatException(record.exc_info)
    lines = [line for part in (trace, record.stack_info) if part for line in part.split("\n")]
    left_out = len(lines) - FIRST_DETAILS - LAST_DETAILS
    if left_out > 0:
        lines[FIRST_DETAILS:-LAST_DETAILS] = [f"... {left_out} lines left out ..."]
    return [escape_controls(line, MAX_DETAIL) for line in lines]
