"""The protocol of the control socket: a request and a reply, each one line of JSON.

Pure: bytes in, values out. A client that may connect is trusted but may be broken: all is bounded and checked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: The longest request, in bytes.
REQUEST_LIMIT = 4096
COMMANDS = ("status", "reload", "upgrade", "scale", "stop", "attach", "dump", "suspend", "resume", "recycle")


@dataclass(frozen=True, slots=True)
class Request:
    """One of COMMANDS: `scale` has `workers`, `stop` may have `at_once`, and `dump` and `recycle` have `worker`."""

    command: str
    workers: int = 0
    at_once: bool = False
    worker: int = -1
    """The slot of one worker."""


class BadRequest(ValueError):
    """Raised for a line that is no request; the text goes to the client."""


def encode_request(request: Request) -> bytes:
    return json.dumps(asdict(request)).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        # json recurses: a few thousand nested brackets raise RecursionError.
        raise BadRequest("not a line of JSON") from None
    if not isinstance(value, dict) or value.get("command") not in COMMANDS:
        raise BadRequest(f"the command must be one of {', '.join(COMMANDS)}")
    workers, at_once, worker = value.get("workers", 0), value.get("at_once", False), value.get("worker", -1)
    if type(workers) is not int or type(worker) is not int or type(at_once) is not bool:
        raise BadRequest("workers and worker must be numbers and at_once must be true or false")
    return Request(value["command"], workers, at_once, worker)


def encode_reply(value: dict[str, Any]) -> bytes:
    """Return the reply as one line: `ok`, and either the result or an `error`."""
    return json.dumps(value).encode() + b"\n"


def decode_reply(line: bytes) -> dict[str, Any]:
    """Return the reply in a line. Raises ValueError if there is none."""
    value = json.loads(line)
    if not isinstance(value, dict) or "ok" not in value:
        raise ValueError("not a reply")
    return value
