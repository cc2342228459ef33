"""Decide from a status whether the server is ready for new connections.

Pure. A server that is not ready may still serve those that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Phases of the supervisor, and states of a worker, in which connections are accepted.
_SERVING = "serving"
_READY = "ready"


def unready_reason(status: Mapping[str, Any]) -> str:
    """Return why no new connections should be sent to the server; "" if it is ready."""
    if status.get("state") != _SERVING:
        return f"the server is {status.get('state')}"
    if status.get("suspended"):
        return "accepting is suspended"
    accepting = [each for each in status.get("workers", ()) if each.get("state") == _READY and not each.get("paused")]
    return "" if accepting else "no worker accepts"
