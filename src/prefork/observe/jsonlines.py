"""Format log records as JSON in ASCII, one object per line. Imported only if needed: it uses python-json-logger.

The keys are time, level, process (supervisor, worker or metrics), worker, pid, logger and message; traceback if there
is one. An event of prefork adds event (the name of its class), fields (its values) and suppressed. What the service
passes as `extra` is added at the top level, and never replaces one of these keys.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from ..text import escape_controls
from .lines import MAX_MESSAGE, Origin, details, event_of, level_name, timestamp
from .sink import LINE_BYTES


class JSONFormatter(JsonFormatter):
    """Formats a record as one line that fits into one write. Of a long traceback it keeps the end (`truncated`)."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(json_ensure_ascii=True)
        self._origin = origin

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(self._own_fields(record))
        theirs: dict[str, Any] = {}
        super().add_fields(
            theirs, record, {k: v for k, v in message_dict.items() if k not in ("exc_info", "stack_info")}
        )
        for key, value in theirs.items():
            log_data.setdefault(escape_controls(key, 64), value)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return valid JSON of less than LINE_BYTES, whatever the service logs."""
        line = _dumps(log_data)
        if len(line) < LINE_BYTES:
            return line
        log_data["truncated"] = True
        lines = log_data.get("traceback", "").split("\n")
        while len(line) >= LINE_BYTES and len(lines) > 1:
            lines = lines[(len(lines) + 1) // 2 :]
            log_data["traceback"] = "...\n" + "\n".join(lines)
            line = _dumps(log_data)
        if len(line) < LINE_BYTES:
            return line
        return _dumps({key: _short(value) for key, value in list(log_data.items())[:16]})

    def _own_fields(self, record: logging.LogRecord) -> dict[str, Any]:
        own: dict[str, Any] = {
            "time": timestamp(record),
            "level": level_name(record),
            "process": self._origin.process if self._origin.worker is None else "worker",
            "worker": self._origin.worker,
            "pid": os.getpid(),
            "logger": escape_controls(record.name, 64),
            "message": record.getMessage()[:MAX_MESSAGE] if isinstance(record.msg, str) else "",
        }
        event = event_of(record)
        if event is not None:
            own["event"] = type(event).__name__
            own["fields"] = {name: value for name, value in event.fields().items() if name != "traceback"}
            own["suppressed"] = getattr(record, "_suppressed", 0) or None
        own["traceback"] = "\n".join(details(record)) or None
        return {key: value for key, value in own.items() if value is not None}


def _dumps(log_data: dict[str, Any]) -> str:
    try:
        line = json.dumps(log_data, cls=JsonEncoder, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        # The values contain a NaN, a key that is not a string, or a reference to themselves.
        plain = {
            key: value if isinstance(value, str | int) else escape_controls(repr(value))
            for key, value in log_data.items()
        }
        line = json.dumps(plain)
    # ASCII, except for one control character that JSON does not escape.
    return line.replace("\x7f", "\\u007f")


def _short(value: Any) -> Any:
    return value if isinstance(value, int | None) else escape_controls(value, 160)
