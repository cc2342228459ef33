"""The exceptions of prefork, and the exit status that the command ends with for each; nothing here does I/O.

A failure to start is a `PreforkError` and has an exit code. A failure of one connection has none. Each error is also
the built-in one that it is a kind of, so `except ValueError` and `except TimeoutError` catch what they should. Where
asyncio has an exception (`IncompleteReadError`, `LimitOverrunError`), streams raise that one.
"""

from __future__ import annotations

import enum
import os


class ExitCode(enum.IntEnum):
    """Exit statuses of the command `prefork`."""

    OK = 0
    NOTHING_FOUND = 1
    USAGE = 2
    SERVICE = 3
    BIND = 4
    CRASH_LOOP = 5
    NOT_RUNNING = 6
    BUG = 70


class PreforkError(Exception):
    """Base of the failures that end a start. The message is one line for the user who started the program."""

    exit_code = ExitCode.BUG

    def lines(self) -> list[str]:
        """Return the message as the command prints it, line by line."""
        return [str(self)]


def reason_of(exc: OSError | MemoryError | ImportError) -> str:
    """Return the cause of a failed system call in lower case, as in `no space left on device`."""
    if isinstance(exc, MemoryError):
        return "out of memory"
    if isinstance(exc, ImportError):
        return str(exc) or type(exc).__name__
    return (exc.strerror or str(exc) or type(exc).__name__).lower()


def place_of(exc: BaseException) -> str:
    """Return the function, file and line that raised `exc`, as in `make_folder, control.py, line 49`."""
    import traceback

    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].name}, {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else "?"


class ConfigError(PreforkError, ValueError):
    """Raised for an option, or a file that it names, that cannot be used. The message names option and value."""

    exit_code = ExitCode.USAGE

    def __init__(self, *args: object, option: str = "") -> None:
        super().__init__(*args)
        self.option = option  # such as --user; "" if the failure is of no option
        self.origin = ""  # where the option was set, if not on the command line: a variable, or a file

    def __str__(self) -> str:
        return super().__str__() + (f" (in {self.origin})" if self.origin else "")


class NotRunningError(ConfigError):
    """Raised in the command for a running server when no server runs where it was looked for."""

    exit_code = ExitCode.NOT_RUNNING


class UntrustedPathsError(ConfigError):
    """Raised when the workers' user could change what the supervisor reads or runs; `lines()` has one per path."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def lines(self) -> list[str]:
        return list(self.problems)

    def __str__(self) -> str:
        more = len(self.problems) - 1
        return self.problems[0] + (f" (and {more} more: see prefork check)" if more else "")


class ServiceError(PreforkError):
    """Raised when the service (TARGET) cannot be imported, cannot be served, or fails to start."""

    exit_code = ExitCode.SERVICE


class BindError(PreforkError, OSError):
    """Raised when `address` cannot be listened on. `errno` is the system's; the message ends with `cure`, if any."""

    exit_code = ExitCode.BIND

    def __init__(self, address: str, errno: int, cure: str = "") -> None:
        reason = os.strerror(errno).lower()
        OSError.__init__(self, errno, reason)
        self.address = address
        self.cure = cure

    def __str__(self) -> str:
        hint = f" ({self.cure})" if self.cure else ""
        return f"bind {self.address}: {self.strerror}{hint}"

    def __reduce__(self) -> tuple[type[BindError], tuple[str, int, str]]:
        assert self.errno is not None
        return type(self), (self.address, self.errno, self.cure)


class ListenerError(PreforkError, OSError):
    """Raised by `TCPServer.serve_forever` when accept(2) reports that the listening socket itself is broken."""


class OutOfResourcesError(OSError):
    """Raised when the system has no memory or epoll watch for a connection: close it, and pause accepting."""


class StreamBusyError(RuntimeError):
    """Raised in the second of two tasks that wait for the same direction of a stream; the first keeps waiting."""


class ConnectionOverflowError(ConnectionAbortedError):
    """Raised in a handler whose connection was aborted because more bytes were unsent than a limit allows."""

    close_reason: str | None = None
    """What the end of the connection is counted as; a `core.account.CloseReason`."""


class ConnectionTimeoutError(ConnectionAbortedError, TimeoutError):
    """Raised in a handler whose connection was aborted because a deadline passed. Its `errno` is None.

    It is raised once; later reads and drains of the connection raise ConnectionAbortedError. Otherwise a handler
    that catches the TimeoutError of its own deadline, and reads again, would loop for ever.
    """

    close_reason: str | None = None
    """What the end of the connection is counted as; a `core.account.CloseReason`."""


class LineTooLongError(ValueError):
    """Raised by `readline` for a line longer than the limit, where asyncio's streams raise a bare ValueError."""
