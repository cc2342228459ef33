"""The client side of the control socket in the command: send a request, and format the reply.

The connection itself is in `system/control_client.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from ..checks import reject
from ..core.control_protocol import Request, decode_reply, encode_request
from ..errors import ServiceError
from ..text import count_of
_FORMATTERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "status": describe_status,
    "reload": lambda reply: f"reloaded: every worker is of generation {reply['generation']}",
    "upgrade": lambda reply: f"upgraded: supervisor {reply['pid']} is serving",
    "scale": lambda reply: f"scaled: {count_of(reply['workers'], 'worker')}",
    "stop": lambda reply: f"stopping: supervisor {reply['pid']}",
}
