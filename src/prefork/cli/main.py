"""The command: its words, and how every failure becomes one line and an exit code.

What a word does is imported when it is said. No socket, no fork and no event loop appears here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import ExitCode, PreforkError
from . import options as o

#: What typer raises for a wrong command line. It has had click inside and beside itself; this name it has always had.
_WrongUsage: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="prefork",
    help="The pre-forking, non-blocking TCP server: any asyncio service on every core, supervised.",
    no_args_is_help=True,
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def serve(
    target: o.Target,
    bind: o.Bind = o.DEFAULT_BIND,
    workers: o.Workers = o.DEFAULT_WORKERS,
    backlog: o.Backlog = o.DEFAULT_BACKLOG,
    tls_cert: o.TLSCert = None,
    tls_key: o.TLSKey = None,
    handshake_timeout: o.HandshakeTimeout = o.DEFAULT_HANDSHAKE_TIMEOUT,
    write_timeout: o.WriteTimeout = o.DEFAULT_WRITE_TIMEOUT,
    drain_timeout: o.DrainTimeout = o.DEFAULT_DRAIN_TIMEOUT,
    ready_fd: o.ReadyFd = None,
    loop: o.Loop = o.DEFAULT_LOOP,
    log_format: o.LogFormat = o.DEFAULT_LOG_FORMAT,
    log_level: o.LogLevel = o.DEFAULT_LOG_LEVEL,
) -> int:
    """Serve TARGET on every core until told to stop (TERM, INT: drain; QUIT, or a second one: at once)."""
    given = dict(locals())
    from ..assembly import run

    return int(run(o.settings(**_without_target(given)), target))


@app.command()
def check(
    target: o.Target,
    bind: o.Bind = o.DEFAULT_BIND,
    workers: o.Workers = o.DEFAULT_WORKERS,
    backlog: o.Backlog = o.DEFAULT_BACKLOG,
    tls_cert: o.TLSCert = None,
    tls_key: o.TLSKey = None,
    handshake_timeout: o.HandshakeTimeout = o.DEFAULT_HANDSHAKE_TIMEOUT,
    write_timeout: o.WriteTimeout = o.DEFAULT_WRITE_TIMEOUT,
    drain_timeout: o.DrainTimeout = o.DEFAULT_DRAIN_TIMEOUT,
    ready_fd: o.ReadyFd = None,
    loop: o.Loop = o.DEFAULT_LOOP,
    log_format: o.LogFormat = o.DEFAULT_LOG_FORMAT,
    log_level: o.LogLevel = o.DEFAULT_LOG_LEVEL,
) -> int:
    """Import TARGET, read the certificates and validate every option; bind nothing."""
    given = dict(locals())
    from ..assembly import check

    typer.echo(f"ok: {check(o.settings(**_without_target(given)), target)}")
    return ExitCode.OK


def _without_target(given: dict[str, Any]) -> dict[str, Any]:
    del given["target"]
    return given


def main() -> None:
    """Run the command that `sys.argv` says, and exit with its code."""
    sys.exit(_main())


def _main() -> int:
    try:
        code = app(prog_name="prefork", standalone_mode=False)
    except _WrongUsage as exc:
        return _wrong_usage(exc)
    except PreforkError as exc:
        return _say(str(exc), exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", 130)
    except BrokenPipeError:
        # Nobody reads what we print; the interpreter must not complain about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception:
        traceback.print_exc()
        return _say("this is a bug in prefork; please report it with the lines above", ExitCode.BUG)
    return int(code or 0)


def _wrong_usage(exc: Any) -> int:
    context = getattr(exc, "ctx", None)
    if len(sys.argv) == 1 and context is not None:
        # Nothing was asked: the help, which is long.
        sys.stderr.write(context.get_help() + "\n")
        return ExitCode.USAGE
    text = " ".join(exc.format_message().split()).rstrip(".")
    if context is None:
        return _say(text, ExitCode.USAGE)
    return _say(f"{text[:1].lower()}{text[1:]} (see: {context.command_path} --help)", ExitCode.USAGE)


def _say(text: str, code: int) -> int:
    # Standard error may be gone, too; the exit code says it then.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"prefork: {' '.join(text.splitlines())}\n")
    return int(code)
