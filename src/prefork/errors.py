"""Failures, named by whose fault they are.

Every failure that prefork raises on purpose is a class here, with the exit code that the command gives it. An error
that asyncio already has a name for (`IncompleteReadError`, `LimitOverrunError`, `ConnectionError`) is raised under it,
or as a subclass of it. No other module defines an exception; nothing here does I/O.
"""

from __future__ import annotations

import enum
import os


class ExitCode(enum.IntEnum):
    """What the command's exit status means."""

    OK = 0
    USAGE = 2
    SERVICE = 3
    BIND = 4
    CRASH_LOOP = 5
    BUG = 70


class PreforkError(Exception):
    """A failure whose one-line message is meant for the person who started the program."""

    exit_code = ExitCode.BUG

    def lines(self) -> list[str]:
        """The message as it is to be printed."""
        return [str(self)]


def reason_of(exc: OSError | MemoryError | ImportError) -> str:
    """Why a call of the system failed, in its own words: `no space left on device`."""
    if isinstance(exc, MemoryError):
        return "out of memory"
    if isinstance(exc, ImportError):
        return str(exc) or type(exc).__name__
    return (exc.strerror or str(exc) or type(exc).__name__).lower()


def place_of(exc: BaseException) -> str:
    """Where it was raised, for people who have the source: `make_folder, control.py, line 49`."""
    import traceback

    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].name}, {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else "?"


class ConfigError(PreforkError):
    """Raised when an option or a file that it names cannot be used. The message names the option and its value."""

    exit_code = ExitCode.USAGE


class UntrustedPaths(ConfigError):
    """Raised when the workers' user could change what the supervisor believes or runs; a line for each path."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def lines(self) -> list[str]:
        return list(self.problems)

    def __str__(self) -> str:
        more = len(self.problems) - 1
        return self.problems[0] + (f" (and {more} more: see prefork check)" if more else "")


class ServiceError(PreforkError):
    """Raised when the service (TARGET) cannot be imported, is nothing that can be served, or fails to start."""

    exit_code = ExitCode.SERVICE


class BindError(PreforkError, OSError):
    """Raised when an address cannot be listened on: `errno` is kept, `address` says which, the text says the cure."""

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


class ListenerFailed(PreforkError, OSError):
    """Raised by `TCPServer.serve_forever` when a listening socket itself is broken; the process should be replaced."""


class OutOfResources(OSError):
    """Raised where the system has no room for one more connection: it is closed, and accepting rests for a moment."""


class StreamBusy(RuntimeError):
    """Raised when two tasks wait for the same direction of one stream; the one that came first keeps waiting."""


class ConnectionOverflow(ConnectionAbortedError):
    """Raised in a handler that left more bytes unsent than the limit allows; the connection has been aborted."""


class ConnectionTimedOut(ConnectionAbortedError):
    """Raised in a handler whose connection was aborted because a deadline passed."""


class LineTooLong(ValueError):
    """Raised by `readline` when the peer's line is longer than the limit; asyncio's streams raise a bare ValueError."""
