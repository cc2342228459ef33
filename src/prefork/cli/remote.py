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
from .servers import find_socket
from .status_text import describe_status

#: Seconds to wait for a reply. A reload replies when the last worker is ready, or when the first one fails.
TIMEOUT = 10.0
RELOAD_TIMEOUT = 3600.0


def parameters() -> list[click.Parameter]:
    """Return the options of every subcommand that talks to a running server."""
    return [
        click.Option(
            ["--control"],
            metavar="PATH",
            default="",
            help="Control socket of the server; needed if several servers run.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the reply as one line of JSON."),
    ]


def ask(request: Request, control: str, as_json: bool, timeout: float = TIMEOUT) -> tuple[str, int]:
    """Send a request; return the reply as text, and the exit code.

    Raises ConfigError if no server can be asked, and ServiceError if the server rejects the request.
    """
    from ..system import control_client

    path = find_socket(control)
    # Outside of the `try`, because the ConfigError that it raises is a ValueError too.
    answer = control_client.request(path, encode_request(request), timeout)
    try:
        reply = decode_reply(answer)
    except ValueError:
        reject("--control", path, "not a prefork control socket")
    if as_json:
        return json.dumps(reply), 0 if reply["ok"] else ServiceError.exit_code
    if not reply["ok"]:
        raise ServiceError(str(reply.get("error", "the server rejected the request")))
    return _FORMATTERS[request.command](reply), 0


def _unlike_programs(reply: dict[str, Any]) -> str:
    return "; a program that accepts by itself goes on" if reply["program"] else ""


_FORMATTERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "status": describe_status,
    "reload": lambda reply: f"reloaded: every worker is of generation {reply['generation']}",
    "upgrade": lambda reply: f"upgraded: supervisor {reply['pid']} is serving",
    "scale": lambda reply: f"scaled: {count_of(reply['workers'], 'worker')}",
    "suspend": lambda reply: f"suspended: clients wait until prefork resume{_unlike_programs(reply)}",
    "resume": lambda reply: f"resumed: the workers accept{_unlike_programs(reply)}",
    "recycle": lambda reply: f"recycling: worker {reply['slot']} drains when another is ready in its place",
    "stop": lambda reply: f"stopping: supervisor {reply['pid']}",
}
