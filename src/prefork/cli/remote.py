"""The words that talk to a running server: what they ask, and how the answer is shown.

The conversation itself is in `system/control_client.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..checks import format_value
from ..core.control_protocol import Request, decode_reply, encode_request
from ..errors import ConfigError, ServiceError
from .sources import Sources

Control = Annotated[
    str,
    typer.Option("--control", metavar="PATH", show_default=False, help="The server's control socket, if not the one."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Answer in one line of JSON.")]

#: Seconds to wait for an answer; a reload answers when the last worker is ready, or the first one is not.
TIMEOUT = 10.0
RELOAD_TIMEOUT = 3600.0


def ask(request: Request, control: str, as_json: bool, timeout: float = TIMEOUT) -> tuple[str, int]:
    """Ask the server, and say what it answered. Raises ConfigError if nobody answers, ServiceError if it declines."""
    from ..system import control_client as socket

    path = control or Sources({}).control() or socket.find_socket()
    answer = socket.request(path, encode_request(request), timeout)
    try:
        reply = decode_reply(answer)
    except ValueError:
        raise ConfigError(f"--control {format_value(path)}: whoever answers there is no prefork") from None
    if as_json:
        return json.dumps(reply), 0 if reply["ok"] else ServiceError.exit_code
    if not reply["ok"]:
        raise ServiceError(str(reply.get("error", "it says no")))
    return _SAID[request.command](reply), 0


def _status(reply: dict[str, Any]) -> str:
    head = (
        f"prefork {reply['version']}, supervisor {reply['pid']}, {reply['state']}"
        f"{', reloading' if reply['reloading'] else ''}, generation {reply['generation']}, up {reply['uptime']:.0f} s"
    )
    columns = ("slot", "pid", "generation", "state", "open", "accepted", "refused", "heartbeat_age")
    rows = [[_cell(worker[column]) for column in columns] for worker in reply["workers"]]
    table = [
        ["worker", "pid", "generation", "state", "open", "accepted", "refused", "heartbeat"],
        *sorted(rows, key=_by_slot),
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    if reply["predecessor"] is not None:
        head += f", after supervisor {reply['predecessor']}, which drains"
    if reply["deaths"]:
        deaths = ", ".join(f"{count} {kind}" for kind, count in sorted(reply["deaths"].items()))
        head += f"\ndeaths of workers: {deaths}"
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([head, *(f"listening on {each}" for each in reply["listeners"]), *lines])


def _by_slot(row: list[str]) -> tuple[int, int]:
    return int(row[0]), int(row[1])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if isinstance(value, float) else str(value)


_SAID: dict[str, Callable[[dict[str, Any]], str]] = {
    "status": _status,
    "reload": lambda reply: f"reloaded: every worker is of generation {reply['generation']}",
    "upgrade": lambda reply: f"upgraded: supervisor {reply['pid']} serves",
    "scale": lambda reply: f"scaled: {reply['workers']} worker{'' if reply['workers'] == 1 else 's'}",
    "stop": lambda reply: f"stopping: supervisor {reply['pid']}",
}
