"""The `prefork` command as a process: turn every outcome into output, one line per failure, and an exit code.

The subcommands are in `commands.py`. They are imported only when this module can report what fails in an import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..errors import ExitCode, PreforkError, place_of, reason_of
from .output import print_bug, print_errors, print_lines, print_text, write_error

#: The exit code of an interrupted command in a shell: 128 + SIGINT.
INTERRUPTED = 130


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
        code = print_bug(exc)
    return code or print_text("")


def _run(arguments: list[str]) -> int:
    try:
        from .commands import COMMANDS, parse
        from .completion import VARIABLE, answer

        if instruction := os.environ.get(VARIABLE):
            return print_text(answer(COMMANDS, instruction))
        action = parse(arguments or ["--help"])
        if isinstance(action, str):
            if arguments:
                return print_text(action)
            # Without arguments the help is printed, but as an error, otherwise a script would take it for success.
            write_error(action)
            return ExitCode.USAGE
        output, code = action()
        return print_lines(output) or code
    except PreforkError as exc:
        return print_errors(exc.lines(), exc.exit_code)
    except (OSError, MemoryError, ImportError) as exc:
        # Modules are imported when they are needed, and an unreadable file is no bug.
        return print_errors([f"the command cannot run: {reason_of(exc)} (in {place_of(exc)})"], ExitCode.SERVICE)


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
