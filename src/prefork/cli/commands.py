"""The subcommands of `prefork`: parse the command line into an action, by click.

The action runs after click has returned (see `main.py`), so that what a server raises hours later does not pass through
click. Imports that only one action needs are inside it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from .._version import __version__
from ..checks import reject
from ..errors import ConfigError, PreforkError
from ..program import PROGRAM_FORMS, Program, parse_program
from . import options, output, program_arguments, remote
from .completion import SHELLS, completer, script
from .directory import enter
from .foreign_names import hint_for_command, hint_for_option
from .help import GroupedCommand
from .options import Given
from .server_commands import SERVER_COMMANDS, ServerCommand
from .servers import failure_of
from .sources import Sources

#: Returns the text for standard output, and the exit code.
Action = Callable[[], tuple[str, int]]


def parse(arguments: list[str]) -> Action | str:
    """Return the action that the arguments ask for, or the help or version to print. Raises PreforkError."""
    printed = io.StringIO()
    try:
        # click would exit by itself, with status 1, if its output is not read.
        with contextlib.redirect_stdout(printed):
            action = COMMANDS.main(arguments, prog_name="prefork", standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as exc:
        command = f"prefork {arguments[0]}" if arguments[0] in COMMANDS.commands else "prefork"
        raise ConfigError(f"{_usage_error(exc)} (see {command} --help)") from None
    return action if callable(action) else printed.getvalue()


def _usage_error(exc: click.UsageError) -> str:
    match exc:
        case click.NoSuchOption():
            return _no_such_option(exc)
        case click.BadOptionUsage():
            # click has one class for both errors.
            missing = "requires an argument" in exc.message
            return f"{exc.option_name}: {'a value is needed after it' if missing else 'takes no value'}"
        case click.MissingParameter() if exc.param is not None:
            is_target = exc.param.name == "target"
            return f"TARGET is missing: {options.TARGET_FORMS}" if is_target else f"{exc.param.metavar} is missing"
    text = exc.format_message().rstrip(".")
    return text[:1].lower() + text[1:]


def _no_such_option(exc: click.NoSuchOption) -> str:
    name = exc.option_name
    parameters = [] if exc.ctx is None else exc.ctx.command.params
    hint = hint_for_option(name, [each for parameter in parameters for each in parameter.opts])
    owners = [command for command in COMMANDS.commands if command != "check" and name in _names_in(command)]
    # An option of serve or run is meant as that. One of another command may be a typing error here.
    if owners and (not hint or {"serve", "run"} & set(owners)):
        return f"{name}: is an option of prefork {' and '.join(owners)}"
    return f"{name}: no such option{hint}"


def _names_in(command: str) -> list[str]:
    return [name for each in COMMANDS.commands[command].params for name in (*each.opts, *each.secondary_opts)]


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        # In the order of their definition, not of the alphabet.
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        remote_names = [each.name for each in SERVER_COMMANDS]
        own_names = [name for name in self.commands if name not in remote_names]
        width = formatter.width - 6 - max(map(len, self.commands))
        for heading, names in (("Commands", own_names), ("Commands for a running server", remote_names)):
            with formatter.section(heading):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(width)) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands:
            raise ConfigError(f"no such command {name!r}{hint_for_command(name, self.commands)} (see prefork --help)")
        return super().resolve_command(ctx, args)


def _print_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        # Here, because the streams that it asks about import asyncio and ssl.
        from ..implementation import describe_core

        click.echo(f"prefork {__version__}, streams {describe_core()}")
        context.exit()


_VERSION = click.Option(
    ["--version", "-V"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version, and whether streams are compiled, and exit.",
)
COMMANDS = _Commands(
    "prefork",
    params=[_VERSION],
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""The pre-forking, non-blocking TCP server: any asyncio service on every core, supervised.

    \b
    # echo.py
    async def handle(stream):
        async for line in stream:
            stream.write(line)

    \b
    $ prefork serve echo:handle --bind :9000
    """,
    epilog="""\b
    Exit codes:
      0   stopped on request
      1   no such connection was found
      2   wrong options
      3   the service cannot be loaded or started, or the server refuses
      4   an address cannot be bound
      5   every worker keeps dying
      6   no server runs that could be asked
      70  a bug in prefork""",
)


# --- serve, check and run ---------------------------------------------------------------------------------------------

_SOURCES = """

A TIME is a number of seconds, or has units: 500ms, 10s, 5m, 1h30m, 2d. BYTES may end with K, M or G.

Each option can also stand in the environment, such as PREFORK_DRAIN_TIMEOUT, or in a TOML file (--config). The command
line wins over the environment, and the environment over the file.
"""
_TARGET = """

TARGET is module:attribute or path/to/file.py:attribute. It names an async def handle(stream), an async def
handle(reader, writer) as for asyncio.start_server, an asyncio.Protocol class or factory, or an object with async start,
handle and stop."""


def _add_local(name: str, act: Callable[[str, Sources], tuple[str, int]], short_help: str, help: str) -> None:
    @click.pass_context
    def read(context: click.Context, /, target: str, **_: object) -> Action:
        module, colon, attribute = target.rpartition(":")
        if not (module and colon and attribute):
            reject("TARGET", target, f"expected {options.TARGET_FORMS}")
        return functools.partial(_act_here, act, target, options.given_in(context))

    target = click.Argument(["target"], metavar="TARGET", shell_complete=completer("", "TARGET"))
    params = [target, *options.parameters(name)]
    help = f"{short_help} {help}{_TARGET}{_SOURCES}"
    COMMANDS.add_command(GroupedCommand(name, callback=read, params=params, short_help=short_help, help=help))


def _act_here(act: Callable[[str, Sources], tuple[str, int]], target: str, given: Given) -> tuple[str, int]:
    enter(given)
    return act(target, Sources(given))


def _serve(target: str, sources: Sources) -> tuple[str, int]:
    from ..assembly.serve import run

    return "", run(sources, target)


def _check(target: str, sources: Sources) -> tuple[str, int]:
    from ..assembly.preflight import check

    found = check(sources, target)
    output.warn([f"{name}: no such option{hint}" for name, hint in sources.unknown_variables])
    output.warn(found.warnings)
    return "\n".join([f"ok: {found.summary}", *found.facts]), 0


_add_local(
    "serve",
    _serve,
    "Serve TARGET on every core until stopped.",
    "SIGTERM and SIGINT drain: the server stops accepting, and open connections have the drain timeout to end. A "
    "second one, or SIGQUIT, stops at once. The log goes to standard error.",
)
_add_local(
    "check",
    _check,
    "Check TARGET, certificates and options.",
    'Binds no address. Takes the options of serve. Prints one line: "ok", or what is wrong.',
)


class _RunCommand(GroupedCommand):
    """Parses its own options only: what follows the name of the program is the program's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with_value = {
            name for each in self.params if isinstance(each, click.Option) and not each.is_flag for name in each.opts
        }
        own, ctx.obj = program_arguments.split(args, with_value)
        return super().parse_args(ctx, own)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # The program, and its words: as far as prefork knows, files.
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type="file")]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "[--]", "PROGRAM [ARGUMENTS]..."]


@click.pass_context
def _read_run(context: click.Context, /, **_: object) -> Action:
    program = parse_program(context.obj)
    return functools.partial(_run, program, options.given_in(context))


def _run(program: Program, given: Given) -> tuple[str, int]:
    from ..assembly.serve import run
    from ..hosting.locate import locate

    enter(given)
    locate(program)
    return "", run(Sources(given, program=program), program)


COMMANDS.add_command(
    _RunCommand(
        "run",
        callback=_read_run,
        params=options.parameters("run"),
        short_help="Run PROGRAM, a whole server, on every core.",
        help=f"""Run PROGRAM, a server with a main program of its own, unchanged, in each worker.

    \b
    $ prefork run server.py --its --own --options
    $ prefork run --bind :8000 -m uvicorn app:app --port 8000
    $ prefork run -- python -m aiosmtpd -n -l 0.0.0.0:8025

    PROGRAM is {PROGRAM_FORMS}. The workers share each address that it binds. It is reloaded, replaced when it crashes
    or hangs, and stopped like a service of prefork serve.{_SOURCES}""",
    )
)


# --- for shells ------------------------------------------------------------------------------------------------------


def _print_completion(shell: str) -> None:
    if shell not in SHELLS:
        reject("SHELL", shell, f"must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}")
    click.echo(script(shell), nl=False)


COMMANDS.add_command(
    click.Command(
        "completion",
        callback=_print_completion,
        params=[click.Argument(["shell"], metavar="SHELL", shell_complete=completer("shell", "SHELL"))],
        short_help="Print what completes prefork in a shell.",
        help="""Print the script that completes commands, options and their values in SHELL: bash, zsh or fish.

    \b
    $ prefork completion bash >~/.local/share/bash-completion/completions/prefork
    $ prefork completion zsh >DIR/_prefork        # DIR is one of $fpath
    $ prefork completion fish >~/.config/fish/completions/prefork.fish""",
    )
)


# --- what a running server is asked -----------------------------------------------------------------------------------


def _add_server_command(row: ServerCommand) -> None:
    def read(as_json: bool, **values: Any) -> Action:
        return functools.partial(_act_on_server, row.act, as_json, values)

    own = remote.parameters()
    params = [*row.params, *(each for each in own if row.asks_one or each.name != "control")]
    COMMANDS.add_command(
        click.Command(row.name, callback=read, params=params, short_help=row.short_help, help=row.help)
    )


def _act_on_server(act: Callable[..., tuple[str, int]], as_json: bool, values: dict[str, Any]) -> tuple[str, int]:
    try:
        return act(as_json=as_json, **values)
    except PreforkError as exc:
        if not as_json:
            raise
        # A program that reads the output finds JSON there in every case.
        return json.dumps(failure_of(exc)), exc.exit_code


for each in SERVER_COMMANDS:
    _add_server_command(each)
