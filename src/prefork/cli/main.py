"""The `prefork` command as a process: turn every outcome into output, one line per failure, and an exit code.

The subcommands are in `commands.py`. They are imported only when this module can report what fails in an import.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from ..errors import ExitCode, PreforkError, place_of, reason_of
from ..text import escape_controls

#: The exit code of an interrupted command in a shell: 128 + SIGINT.
INTERRUPTED = 130
#: Maximum length of one line of an error, and of one line of output, in characters.
_ERROR_LIMIT = 2000
_OUTPUT_LIMIT = 16 * 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, by default with the arguments of the process, and return its exit code.

    Only SystemExit of a service is raised.
    """
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
        from .commands import parse

        action = parse(arguments or ["--help"])
        if isinstance(action, str):
            if arguments:
                return _print(action)
            # Without arguments the help is printed, but as an error, otherwise a script would take it for success.
            _write_error(action)
            return ExitCode.USAGE
        output, code = action()
        lines = [escape_controls(line, _OUTPUT_LIMIT) for line in output.split("\n") if line]
        return _print("".join(f"{line}\n" for line in lines)) or code
    except PreforkError as exc:
        return _print_error(exc.lines(), exc.exit_code)
    except (OSError, MemoryError, ImportError) as exc:
        # Modules are imported when they are needed, and an unreadable file is no bug.
        return _print_error([f"the command cannot run: {reason_of(exc)} (in {place_of(exc)})"], ExitCode.SERVICE)


# --- output -----------------------------------------------------------------------------------------------------------


def _print_error(lines: Sequence[str], code: int) -> int:
    _write_error("".join(f"prefork: {escape_controls(line, _ERROR_LIMIT)}\n" for line in lines))
    return int(code)


def _bug(exc: Exception) -> int:
    lines = "".join(traceback.format_exception(exc)).split("\n")
    _write_error("".join(f"{escape_controls(line, _ERROR_LIMIT)}\n" for line in lines if line))
    return _print_error(["this is a bug in prefork: please report it with the lines above"], ExitCode.BUG)


def _write_error(text: str) -> None:
    # Not through sys.stderr: Python would write its buffer again at exit, and a failure there changes the code to 120.
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _print(text: str) -> int:
    """Write to standard output and flush it; return the exit code of that."""
    if sys.stdout is None:
        return ExitCode.OK
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError) as exc:
        # Otherwise Python would write again at exit, and print the error in its own way.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError | ValueError) or exc.errno == errno.EIO:
            # The reader or the terminal is gone. The command itself has succeeded.
            return ExitCode.OK
        return _print_error([f"standard output: {reason_of(exc)}"], ExitCode.USAGE)
    return ExitCode.OK


def _ensure_standard_descriptors() -> None:
    """Open /dev/null for each closed standard descriptor.

    Otherwise the next socket would get the number, and a service that prints would send its output to a peer.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # open() returns the lowest free descriptor, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
