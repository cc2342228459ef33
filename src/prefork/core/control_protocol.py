"""The protocol of the control socket: a request and a reply, each one line of JSON.

Pure: bytes in, values out. A client that may connect is trusted but may be broken: all is bounded and checked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: The longest request, in bytes.
REQUEST_LIMIT = 4096
#: What `dump` names for the workers of all slots.
ALL_SLOTS = -1
COMMANDS = ("status", "reload", "upgrade", "scale", "stop", "attach", "dump", "suspend", "resume", "recycle")


@dataclass(frozen=True, slots=True)
class Request:
    """One of COMMANDS: `scale` has `workers`, `stop` may have `at_once`, and `dump` and `recycle` have `worker`."""

    command: str
    workers: int = 0
    at_once: bool = False
    worker: int = ALL_SLOTS
    """The slot of one worker."""
    wait: bool = False
    """Reply to `stop` when the server has stopped, and not at once."""
    progress: bool = False
    """Send lines {"progress": ...} before the reply: see `core/progress.py`."""


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
    numbers = [value.get(name, default) for name, default in (("workers", 0), ("worker", -1))]
    flags = [value.get(name, False) for name in ("at_once", "wait", "progress")]
    if not all(type(number) is int for number in numbers) or not all(type(flag) is bool for flag in flags):
        raise BadRequest("workers and worker must be numbers, and at_once, wait and progress must be true or false")
    (workers, worker), (at_once, wait, progress) = numbers, flags
    return Request(value["command"], workers, at_once, worker, wait, progress)


def encode_reply(value: dict[str, Any]) -> bytes:
    """Return the reply as one line: `ok`, and either the result or an `error`."""
    return json.dumps(value).encode() + b"\n"


def decode_progress(line: bytes) -> dict[str, Any] | None:
    """Return how far a request is, if the line says that; None: it is the reply, or nothing that is known."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"progress": {"done": int(), "total": int(), "text": str()}}:
            progress: dict[str, Any] = value["progress"]
            return progress
    return None


def decode_reply(line: bytes) -> dict[str, Any]:
    """Return the reply in a line. Raises ValueError if there is none."""
    value = json.loads(line)
    if not isinstance(value, dict) or "ok" not in value:
        raise ValueError("not a reply")
    return value
