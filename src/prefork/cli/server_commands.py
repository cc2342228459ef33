"""The table of subcommands for a running server: their words, their parameters, and what each does.

To add one, add a row to SERVER_COMMANDS: the help, the manual page and the completion are made from it. What a row does
is a function of `control`, `as_json` and its own parameters, which returns text and an exit code. `asking` makes one
that sends a request. Anything longer stands in a module of its own, which the row imports when it runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ..core.control_protocol import Request
from . import options, remote, top
from .servers import list_servers


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """One subcommand for a running server."""

    name: str
    short_help: str
    """One line for the list of commands."""
    help: str
    act: Callable[..., tuple[str, int]]
    """Called with `control`, `as_json` and the value of each of `params`, by name. Raises PreforkError."""
    params: tuple[click.Parameter, ...] = ()
    asks_one: bool = True
    """Whether one server is meant, which `--control` names."""


def asking(request: Callable[..., Request], timeout: float = remote.TIMEOUT) -> Callable[..., tuple[str, int]]:
    """Return what sends the request made of a command's values, and waits `timeout` seconds for the reply."""

    def act(control: str, as_json: bool, **values: Any) -> tuple[str, int]:
        return remote.ask(request(**values), control, as_json, timeout)

    return act


SERVER_COMMANDS = (
    ServerCommand(
        "status",
        "Show listeners and workers of a running server.",
        "Show a running server: its listeners, and the state, connections and heartbeat of each worker.",
        asking(functools.partial(Request, "status")),
    ),
    ServerCommand(
        "top",
        "Watch a running server in the terminal.",
        "Watch a running server: its workers, its connections, the account of connections, and what went wrong. Needs "
        "Textual (pip install 'prefork[top]'), except with --once.",
        top.show,
        top.PARAMETERS,
    ),
    ServerCommand(
        "list",
        "List the running servers of this user.",
        "List the running servers of this user: control socket, pid, state, target and addresses. A server with a "
        "control socket elsewhere, named by --control, is not found.",
        list_servers,
        asks_one=False,
    ),
    ServerCommand(
        "reload",
        "Replace all workers, with new code and certificates.",
        "Replace all workers of a running server, with new code, settings and certificates. Waits until every worker "
        "is new, or prints why the running workers stay.",
        asking(functools.partial(Request, "reload"), remote.RELOAD_TIMEOUT),
    ),
    ServerCommand(
        "upgrade",
        "Replace a running server by the installed program.",
        "Start the installed program with the sockets of a running server. Waits until it has taken over, or prints "
        "why the running server stays.",
        asking(functools.partial(Request, "upgrade"), remote.RELOAD_TIMEOUT),
    ),
    ServerCommand(
        "scale",
        "Change the number of workers.",
        "Change the number of workers of a running server to N. Surplus workers drain.",
        asking(lambda workers: Request("scale", options.parse_int("N", workers))),
        (click.Argument(["workers"], metavar="N"),),
    ),
    ServerCommand(
        "stop",
        "Stop a running server.",
        "Stop a running server: drain, then exit.",
        asking(lambda now: Request("stop", at_once=now)),
        (click.Option(["--now"], is_flag=True, help="Abort open connections at once."),),
    ),
)
