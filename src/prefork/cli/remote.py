"""The client side of the control socket in the command: send a request, and format the reply.

The connection itself is in `system/control_client.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import click

from ..checks import reject
from ..core.control_protocol import Request, decode_progress, decode_reply, encode_request
from ..errors import ExitCode, ServiceError
from ..events import ListenersChanged, OldConnectionsStay
from ..text import count_of
from .completion import complete_control
from .output import print_errors
from .progress import ProgressLine
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
            shell_complete=complete_control,
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the reply as one line of JSON."),
    ]


def ask(request: Request, control: str, as_json: bool, timeout: float = TIMEOUT) -> tuple[str, int]:
    """Send a request; return the reply as text, and the exit code.

    Raises ConfigError if no server can be asked, and ServiceError if the server rejects the request.
    """
    from ..system import control_client

    path, until_end = find_socket(control), request.command == "stop" and request.wait
    # Outside of the `try`, because the ConfigError that it raises is a ValueError too.
    try:
        with contextlib.closing(ProgressLine()) as line:
            show = _shown_by(line, as_json)
            message = encode_request(request)
            answer = control_client.request(path, message, timeout, on_progress=show, until_end=until_end)
    except KeyboardInterrupt:
        if request.progress:
            # Otherwise Ctrl-C looks as if it had called the command off.
            print_errors([f"interrupted, but the {request.command} goes on: see prefork status"], ExitCode.OK)
        raise
    try:
        reply = decode_reply(answer)
    except ValueError:
        reject("--control", path, "not a prefork control socket")
    if as_json:
        return json.dumps(reply), 0 if reply["ok"] else ServiceError.exit_code
    if not reply["ok"]:
        raise ServiceError(str(reply.get("error", "the server rejected the request")))
    return _FORMATTERS[request.command](reply), 0


def _shown_by(line: ProgressLine, as_json: bool) -> Callable[[bytes], bool]:
    def show(received: bytes) -> bool:
        progress = decode_progress(received)
        if progress is not None and not as_json:
            left = progress.get("left")
            line.update(progress["done"], progress["total"], progress["text"], left if isinstance(left, int) else None)
        return progress is not None

    return show


def _reloaded(reply: dict[str, Any]) -> str:
    lines = [f"reloaded: every worker is of generation {reply['generation']}"]
    added, removed = reply.get("added", []), reply.get("removed", [])
    if added or removed:
        lines.append(str(ListenersChanged(tuple(added), tuple(removed))))
    return "\n".join([*lines, *_staying(reply)])


def _upgraded(reply: dict[str, Any]) -> str:
    return "\n".join([f"upgraded: supervisor {reply['pid']} is serving", *_staying(reply)])


def _staying(reply: dict[str, Any]) -> list[str]:
    old = reply.get("old", {})
    if not old.get("connections"):
        return []
    return [str(OldConnectionsStay(old["connections"], old["workers"], old["seconds"]))]


def _scaled(reply: dict[str, Any]) -> str:
    queued = "; the reload under way starts the new ones" if reply.get("queued") else ""
    return f"scaled: {count_of(reply['workers'], 'worker')}{queued}"


def _stopped(reply: dict[str, Any]) -> str:
    if "aborted" not in reply:
        return f"stopping: supervisor {reply['pid']}"
    aborted = f"{reply['aborted']} aborted" if reply["aborted"] else "none aborted"
    drains = reply.get("predecessor")
    rest = "" if drains is None else f"; supervisor {drains}, which it had taken over from, still drains"
    return f"stopped: {count_of(reply['closed'], 'connection')} closed, {aborted}, in {reply['seconds']:.1f} s{rest}"


def _unlike_programs(reply: dict[str, Any]) -> str:
    return "; a program that accepts by itself goes on" if reply["program"] else ""


_FORMATTERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "status": describe_status,
    "reload": _reloaded,
    "upgrade": _upgraded,
    "scale": _scaled,
    "suspend": lambda reply: f"suspended: clients wait until prefork resume{_unlike_programs(reply)}",
    "resume": lambda reply: f"resumed: the workers accept{_unlike_programs(reply)}",
    "recycle": lambda reply: f"recycling: worker {reply['slot']} drains when another is ready in its place",
    "stop": _stopped,
}
