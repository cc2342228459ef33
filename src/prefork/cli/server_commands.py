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
from . import remote, top, values
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


def _of_console(name: str) -> Callable[..., tuple[str, int]]:
    """Return a function of `console_commands.py`, which is imported when it is called."""

    def act(**values: Any) -> tuple[str, int]:
        from . import console_commands

        text: tuple[str, int] = getattr(console_commands, name)(**values)
        return text

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
        asking(functools.partial(Request, "reload", progress=True), remote.RELOAD_TIMEOUT),
    ),
    ServerCommand(
        "upgrade",
        "Replace a running server by the installed program.",
        "Start the installed program with the sockets of a running server. Waits until it has taken over, or prints "
        "why the running server stays.",
        asking(functools.partial(Request, "upgrade", progress=True), remote.RELOAD_TIMEOUT),
    ),
    ServerCommand(
        "scale",
        "Change the number of workers.",
        "Change the number of workers of a running server to N. Surplus workers drain.",
        asking(lambda workers: Request("scale", values.parse_int("N", workers))),
        (click.Argument(["workers"], metavar="N"),),
    ),
    ServerCommand(
        "connections",
        "Show the connections of a running server.",
        "Show the connections of a running server: peer, worker, phase, age, bytes, TLS. A worker that does not answer "
        "within 80 ms is shown as the kernel knows it, marked as stale. --detail shows one with the facts of the "
        "kernel: round-trip time, retransmissions, what limits it.",
        _of_console("connections"),
        (
            click.Option(["--worker"], metavar="N", help="Only those of the worker in slot N."),
            click.Option(["--peer"], metavar="PEER", multiple=True, help="Only those of an address or network."),
            click.Option(["--sort"], metavar="KEY", default="id", show_default=True, help="age, rx, -idle, ..."),
            click.Option(["--limit"], metavar="N", default="1000", show_default=True, help="Rows; 0: all."),
            click.Option(["--detail"], metavar="ID", help="One connection, by its id or its peer."),
        ),
    ),
    ServerCommand(
        "kick",
        "Abort connections of a running server.",
        "Abort the connection with an id (SLOT-N, see prefork connections) or of a peer (ADDRESS:PORT), or all of an "
        "address or network, after a question. Exit code 1: there was none.",
        _of_console("kick"),
        (
            click.Argument(["peer"], metavar="PEER|ID"),
            click.Option(["--yes"], is_flag=True, help="Abort several without a question."),
        ),
    ),
    ServerCommand(
        "stacks",
        "Show what the tasks of a running server wait for.",
        "Show what the tasks of each worker wait for: the frames along its awaits, tasks with the same ones together. "
        "Of a worker that does not answer, the stacks of its threads.",
        _of_console("stacks"),
        (click.Option(["--worker"], metavar="N", help="Only those of the worker in slot N."),),
    ),
    ServerCommand(
        "suspend",
        "Have no worker accept; clients wait.",
        "Have no worker of a running server accept connections. Open ones go on, and clients wait in the accept queue "
        "until prefork resume. It outlives workers, reloads and upgrades.",
        asking(functools.partial(Request, "suspend")),
    ),
    ServerCommand(
        "resume",
        "Have the workers accept again.",
        "Have the workers of a running server accept again, after prefork suspend.",
        asking(functools.partial(Request, "resume")),
    ),
    ServerCommand(
        "recycle",
        "Replace one worker of a running server.",
        "Replace the worker in a slot of a running server by another of its generation. It drains when that is ready.",
        asking(lambda worker: Request("recycle", worker=values.parse_int("SLOT", worker))),
        (click.Argument(["worker"], metavar="SLOT"),),
    ),
    ServerCommand(
        "stop",
        "Stop a running server.",
        "Stop a running server: drain, then exit. Waits for its end, and prints how many connections were aborted. "
        "Another stop changes nothing, unless it is one with --now.",
        asking(lambda now, wait: Request("stop", at_once=now, wait=wait, progress=wait), remote.RELOAD_TIMEOUT),
        (
            click.Option(["--now"], is_flag=True, help="Abort open connections at once."),
            click.Option(["--wait/--no-wait"], default=True, help="Wait until the server has ended.  [default: wait]"),
        ),
    ),
)
