"""The language of the control socket: a request and a reply, each one line of JSON.

Pure: bytes in, values out. Whoever may connect may be trusted, but not to be well: everything is bounded and checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: The longest request, in bytes.
REQUEST_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants: `status`, `reload`, `upgrade`, `scale` (with `workers`), or `stop` (perhaps `at_once`)."""

    command: str
    workers: int = 0
    at_once: bool = False


COMMANDS = ("status", "reload", "upgrade", "scale", "stop")


class BadRequest(ValueError):
    """Raised for a request that is none; the text goes to the client."""


def encode_request(request: Request) -> bytes:
    """One line."""
    value = {"command": request.command, "workers": request.workers, "at_once": request.at_once}
    return json.dumps(value).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises BadRequest."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        # The second for what is nested deeply: a few thousand brackets are enough.
        raise BadRequest("not a line of JSON") from None
    if not isinstance(value, dict) or value.get("command") not in COMMANDS:
        raise BadRequest(f"the command must be one of {', '.join(COMMANDS)}")
    workers, at_once = value.get("workers", 0), value.get("at_once", False)
    if type(workers) is not int or type(at_once) is not bool:
        raise BadRequest("workers must be a number and at_once a truth value")
    return Request(value["command"], workers, at_once)


def encode_reply(value: dict[str, Any]) -> bytes:
    """One line: `ok`, and what was asked for or `error`."""
    return json.dumps(value).encode() + b"\n"


def decode_reply(line: bytes) -> dict[str, Any]:
    """The reply in a line. Raises ValueError."""
    value = json.loads(line)
    if not isinstance(value, dict) or "ok" not in value:
        raise ValueError("not a reply")
    return value
