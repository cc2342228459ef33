"""The words of the command, and what each of them does.

A word only reads its options, and gives back what is to be done: it is done when typer has left, so that what a server
raises hours later goes through nobody's hands but ours. What a word needs is imported when it is done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from ..config import Settings
from . import options

WORDS = ("serve", "check")

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


def _word(act: Callable[[str, Settings], tuple[str, int]]) -> Callable[..., Action]:
    """`act` as typer sees it: with the parameters of `options.read`, and called later."""

    @functools.wraps(options.read)
    def word(*args: Any, **kwargs: Any) -> Action:
        return functools.partial(act, *options.read(*args, **kwargs))

    return word


def _serve(target: str, settings: Settings) -> tuple[str, int]:
    from ..assembly import run

    return "", run(settings, target)


def _check(target: str, settings: Settings) -> tuple[str, int]:
    from ..assembly import check

    return f"ok: {check(settings, target)}", 0


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
