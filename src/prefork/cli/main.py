"""The command as a process: how it begins, how every failure becomes one line and an exit code, how it ends.

Light, and without the words themselves: those are in `commands`, imported when the process is able to say what goes
wrong with it.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ExitCode, PreforkError, place_of, reason_of
from ..text import escape_controls

#: What a shell gives a command that was interrupted: 128 and the number of SIGINT.
INTERRUPTED = 130
_TEXT_LIMIT = 2000
_ANSWER_LIMIT = 16 * 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; the exit code. A service's SystemExit
    passes; nothing else is raised."""
    try:
        _ensure_standard_descriptors()
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as exc:
        code = _bug(exc)
    return code or _print("")


def _run(arguments: list[str]) -> int:
    try:
        action, said = _parse(arguments)
        if action is None and not arguments:
            # Nothing was asked for: the help is the answer, but a script must not take it for a success.
            _write_error(said)
            return ExitCode.USAGE
        if action is None:
            return _print(said)
        said, code = action()
        return _print("".join(f"{escape_controls(line, _ANSWER_LIMIT)}\n" for line in said.split("\n") if line)) or code
    except PreforkError as exc:
        return _print_error(exc.lines(), exc.exit_code)
    except (OSError, MemoryError, ImportError) as exc:
        # Parts of ours are imported when they are needed: files that cannot be read are no bug.
        return _print_error([f"the command cannot run: {reason_of(exc)} (in {place_of(exc)})"], ExitCode.SERVICE)


def _parse(arguments: list[str]) -> tuple[Callable[[], tuple[str, int]] | None, str]:
    """What the arguments ask for; None when it was to print what comes with it. Raises PreforkError."""
    import typer
    from typer.main import get_command

    from .commands import app

    # typer has its click beside itself or inside, by version; of all its exceptions for a wrong command line this is
    # the common base in both.
    wrong_usage: type[Exception] = typer.BadParameter.__mro__[2]
    printed = io.StringIO()
    try:
        # Printing is ours: typer exits by itself, and with 1, when nobody reads.
        with contextlib.redirect_stdout(printed):
            action = get_command(app).main(arguments or ["--help"], prog_name="prefork", standalone_mode=False)
    except wrong_usage as exc:
        raise _wrong_usage(exc, arguments) from None
    if action == INTERRUPTED:
        raise KeyboardInterrupt
    return (action, "") if callable(action) else (None, printed.getvalue())


def _wrong_usage(exc: Any, arguments: list[str]) -> PreforkError:
    """A wrong command line in our words: what, why, and where to read on."""
    from ..errors import ConfigError
    from .commands import WORDS
    from .options import TARGET_FORMS

    command = "prefork " + arguments[0] if arguments[0] in WORDS else "prefork"
    option = getattr(exc, "option_name", None)
    if option is not None and hasattr(exc, "possibilities"):
        near = difflib.get_close_matches(option, exc.possibilities or (), 1)
        text = f"{option}: no such option" + (f", did you mean {near[0]}?" if near else "")
    elif option is not None:
        text = f"{option}: a value is needed after it" if "requires" in exc.message else f"{option}: {exc.message}"
    elif getattr(getattr(exc, "param", None), "name", None) == "target":
        text = f"TARGET is missing: {TARGET_FORMS}"
    else:
        text = exc.format_message().rstrip(".")
        text = text[:1].lower() + text[1:]
    return ConfigError(f"{text} (see {command} --help)")


# --- what is said, and where ------------------------------------------------------------------------------------------


def _print_error(lines: Sequence[str], code: int) -> int:
    _write_error("".join(f"prefork: {escape_controls(line, _TEXT_LIMIT)}\n" for line in lines))
    return int(code)


def _bug(exc: Exception) -> int:
    lines = "".join(traceback.format_exception(exc)).split("\n")
    _write_error("".join(f"{escape_controls(line, _TEXT_LIMIT)}\n" for line in lines if line))
    return _print_error(["this is a bug in prefork: please report it with the lines above"], ExitCode.BUG)


def _write_error(text: str) -> None:
    # Past Python's buffer: what cannot be written would be tried again at exit, and the exit code become 120.
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _print(text: str) -> int:
    """Write to standard output, and make sure that it is written: the exit code of having tried."""
    if sys.stdout is None:
        return ExitCode.OK
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError) as exc:
        # Python would try again at exit, and complain in lines of its own.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError | ValueError) or exc.errno == errno.EIO:
            # Nobody wants to read it (any more), or the terminal is gone: what was to be done is done.
            return ExitCode.OK
        return _print_error([f"standard output: {(exc.strerror or str(exc)).lower()}"], ExitCode.USAGE)
    return ExitCode.OK


def _ensure_standard_descriptors() -> None:
    """Open /dev/null in place of standard descriptors that are closed: the next socket would get the number, and a
    service that prints would send it to a peer."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
