"""Write to the standard streams as a command does: escaped, whole lines, and no traceback if that fails.

Which outcome is printed where is decided in `main.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterable, Sequence

from ..errors import ExitCode, reason_of
from ..text import escape_controls

#: Maximum length of one line of an error, and of one line of output, in characters.
_ERROR_LIMIT = 2000
_OUTPUT_LIMIT = 16 * 1024 * 1024


def print_lines(text: str) -> int:
    """Write the lines of `text`, which may be of others, to standard output; return the exit code of that."""
    lines = [escape_controls(line, _OUTPUT_LIMIT) for line in text.split("\n") if line]
    return print_text("".join(f"{line}\n" for line in lines))


def warn(warnings: Iterable[str]) -> None:
    """Write each warning as one line to standard error."""
    print_errors([f"warning: {each}" for each in warnings], ExitCode.OK)


def print_errors(lines: Sequence[str], code: int) -> int:
    write_error("".join(f"prefork: {escape_controls(line, _ERROR_LIMIT)}\n" for line in lines))
    return int(code)


def print_bug(exc: Exception) -> int:
    lines = "".join(traceback.format_exception(exc)).split("\n")
    write_error("".join(f"{escape_controls(line, _ERROR_LIMIT)}\n" for line in lines if line))
    return print_errors(["this is a bug in prefork: please report it with the lines above"], ExitCode.BUG)


def write_error(text: str) -> None:
    # Not through sys.stderr: Python would write its buffer again at exit, and a failure there changes the code to 120.
    with contextlib.suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def print_text(text: str) -> int:
    """Write to standard output and flush it; return the exit code of that."""
    if sys.stdout is None:
        return ExitCode.OK
    try:
        encoding = sys.stdout.encoding or "utf-8"
        if text:
            # Python passes an empty text on to the system: a full disk would fail a server that has printed nothing.
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError) as exc:
        # Otherwise Python would write again at exit, and print the error in its own way.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError | ValueError) or exc.errno == errno.EIO:
            # The reader or the terminal is gone. The command itself has succeeded.
            return ExitCode.OK
        return print_errors([f"standard output: {reason_of(exc)}"], ExitCode.USAGE)
    return ExitCode.OK
