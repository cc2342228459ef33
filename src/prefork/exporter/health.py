"""Decide from a status whether the server is ready for new connections.

Pure. A server that is not ready may still serve those that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The phase of the supervisor, and the state of a worker, in which connections are accepted.
_SERVING = "serving"
_READY = "ready"
#: What is said of a phase whose name does not say what follows.
_REASONS = {
    "lame_duck": "the server is a lame duck: it serves, and is about to drain",
    "stopping": "the server is stopping",
}


def unready_reason(status: Mapping[str, Any]) -> str:
    """Return why no new connections should be sent to the server; "" if it is ready."""
    if status["state"] != _SERVING:
        return _REASONS.get(status["state"], f"the server is {status['state']}")
    if status.get("suspended"):
        return "accepting is suspended"
    # One that pauses at a limit is ready: a server that is busy is not one that fails.
    ready = any(worker["state"] == _READY for worker in status["workers"])
    return "" if ready else "no worker is ready"
