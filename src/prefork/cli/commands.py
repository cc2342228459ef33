"""The words of the command, and what each of them does.

A word only reads its options, and gives back what is to be done: it is done when typer has left, so that what a server
raises hours later goes through nobody's hands but ours. What a word needs is imported when it is done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import typer

from .._version import __version__
from ..core.control_protocol import Request
from . import options, remote
from .sources import Sources

WORDS = ("serve", "check", "status", "reload", "upgrade", "scale", "stop")

#: What remains to be done: it returns what is to be printed on standard output, and the exit code.
Action = Callable[[], tuple[str, int]]

app = typer.Typer(
    name="prefork",
    help="""The pre-forking, non-blocking TCP server: any asyncio service on every core, supervised.

    \b
    # echo.py
    async def handle(stream):
        async for line in stream:
            stream.write(line)

    \b
    $ prefork serve echo:handle --bind :9000
    """,
    epilog="Exit codes: 0 stopped as asked, 2 wrong options, 3 the service cannot be loaded or started, 4 an address "
    "cannot be bound, 5 gave up as every worker keeps dying, 70 a bug in prefork.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefork {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def _word(act: Callable[[str, Sources], tuple[str, int]]) -> Callable[..., Action]:
    """`act` as typer sees it: with TARGET and all options, and called later."""
    return options.word(lambda target, given: functools.partial(act, target, Sources(given)))


def _serve(target: str, sources: Sources) -> tuple[str, int]:
    from ..assembly.serve import run

    return "", run(sources, target)


def _check(target: str, sources: Sources) -> tuple[str, int]:
    from ..assembly.preflight import check

    return f"ok: {check(sources, target)}", 0


app.command(
    "serve",
    short_help="Serve TARGET on every core until told to stop.",
    help="""Serve TARGET on every core until told to stop.

    TERM and INT drain: no new connections, open ones may end within the drain timeout. A second one, and QUIT, stop at
    once. The log goes to standard error.
    """,
)(_word(_serve))
app.command(
    "check",
    short_help="Try everything that can go wrong before serve; bind nothing.",
    help="""Import TARGET, read the certificates and validate every option, but bind nothing.

    Takes the options of serve. Says "ok" in one line, or what is wrong.
    """,
)(_word(_check))


@app.command("status", short_help="Show a running server: listeners, and each worker.")
def _status(control: remote.Control = "", as_json: remote.AsJSON = False) -> Action:
    """Show a running server: its listeners, and for each worker its state, connections and heartbeat."""
    return functools.partial(remote.ask, Request("status"), control, as_json)


@app.command("reload", short_help="Replace every worker by one with today's code and certificates.")
def _reload(control: remote.Control = "", as_json: remote.AsJSON = False) -> Action:
    """Reload a running server, and wait until every worker is new, or say why what runs was kept."""
    return functools.partial(remote.ask, Request("reload"), control, as_json, remote.RELOAD_TIMEOUT)


@app.command("upgrade", short_help="Replace a running server by the program as it is installed now.")
def _upgrade(control: remote.Control = "", as_json: remote.AsJSON = False) -> Action:
    """Have a running server start the installed program with the same sockets, and wait until that one has taken over,
    or say why what runs was kept."""
    return functools.partial(remote.ask, Request("upgrade"), control, as_json, remote.RELOAD_TIMEOUT)


@app.command("scale", short_help="Change the number of workers.")
def _scale(
    workers: Annotated[str, typer.Argument(metavar="N", show_default=False, help="How many there shall be.")],
    control: remote.Control = "",
    as_json: remote.AsJSON = False,
) -> Action:
    """Change the number of workers of a running server; those that go drain first."""
    return functools.partial(remote.ask, Request("scale", options.whole("N", workers)), control, as_json)


@app.command("stop", short_help="Stop a running server.")
def _stop(
    now: Annotated[bool, typer.Option("--now", help="Without a drain.")] = False,
    control: remote.Control = "",
    as_json: remote.AsJSON = False,
) -> Action:
    """Stop a running server: drain, then exit."""
    return functools.partial(remote.ask, Request("stop", at_once=now), control, as_json)
