"""A program that `prefork run` runs, and when a worker of it counts as ready: the text of each becomes a checked value.

Nothing outside the text is looked at: `hosting/run_main.py` finds the files, in the worker.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from .checks import MAX_DESCRIPTOR, MAX_SECONDS, parse_duration, reject
from .errors import ConfigError

_PYTHON = re.compile(r"python(?P<version>3(\.[0-9]+)?)?")
PROGRAM_FORMS = "FILE, -m MODULE, or the name of a Python script such as uvicorn"


class ProgramKind(enum.Enum):
    """How Python is told what to run."""

    FILE = "file"
    """A script, or a directory or zip file with a `__main__`."""
    MODULE = "module"
    """As after `python -m`."""
    SCRIPT = "script"
    """A command that a package has installed, found as a shell finds it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A Python program with its own arguments."""

    kind: ProgramKind
    name: str
    arguments: tuple[str, ...] = ()
    interpreter: str = ""
    """The interpreter as the user wrote it, to be compared with the one that runs; "" if none was written."""

    def __str__(self) -> str:
        return f"-m {self.name}" if self.kind is ProgramKind.MODULE else self.name


def parse_program(words: tuple[str, ...]) -> Program:
    """Return the program that the words of a command name. Raises ConfigError.

    `python` as the first word stands for the Python that prefork runs in: a worker is a fork, and cannot become
    another one.
    """
    if not words:
        raise ConfigError(f"PROGRAM is missing: {PROGRAM_FORMS}")
    interpreter = ""
    if _PYTHON.fullmatch(words[0].rpartition("/")[2]):
        interpreter, words = words[0], words[1:]
        while words and words[0] == "-u":
            # Harmless: a worker flushes what a terminal or a log would wait for no longer than Python itself does.
            words = words[1:]
        if not words:
            raise ConfigError(f"PROGRAM {interpreter}: name what it is to run: FILE or -m MODULE")
    first, rest = words[0], words[1:]
    if first == "-m":
        if not rest:
            raise ConfigError("PROGRAM -m: the name of a module is missing")
        if not all(part.isidentifier() for part in rest[0].split(".")):
            reject("PROGRAM -m", rest[0], "must be the name of a module")
        return Program(ProgramKind.MODULE, rest[0], rest[1:], interpreter)
    if first.startswith("-m") and interpreter:
        return parse_program((interpreter, "-m", first[2:], *rest))
    if first.startswith("-"):
        cure = "set PYTHON* variables instead" if interpreter else f"expected {PROGRAM_FORMS}"
        reject("PROGRAM", first, f"options of Python itself cannot be given ({cure})")
    is_file = bool(interpreter) or "/" in first or first.endswith((".py", ".pyz"))
    return Program(ProgramKind.FILE if is_file else ProgramKind.SCRIPT, first, rest, interpreter)


class ReadyKind(enum.Enum):
    """What tells that a worker is ready."""

    LISTEN = "listen"
    """It listens on what its predecessor listened on."""
    NOTIFY = "notify"
    """It sends READY=1 (sd_notify(3))."""
    DESCRIPTOR = "fd"
    """It writes a line to a descriptor."""
    DELAY = "delay"
    """It has run for some time."""


@dataclass(frozen=True, slots=True)
class ReadyWhen:
    """When a worker counts as ready; `number` is the descriptor, or the seconds of a delay."""

    kind: ReadyKind = ReadyKind.LISTEN
    number: float = 0

    def __str__(self) -> str:
        needs = self.kind in (ReadyKind.DESCRIPTOR, ReadyKind.DELAY)
        return f"{self.kind.value}:{self.number:g}" if needs else self.kind.value


def parse_ready(option: str, text: str) -> ReadyWhen:
    """Return what `--ready` says: listen, notify, fd:N or delay:TIME. Raises ConfigError."""
    kind, colon, number = text.partition(":")
    if kind in ("listen", "notify") and not colon:
        return ReadyWhen(ReadyKind(kind))
    if kind == "fd":
        if not re.fullmatch("[0-9]{1,10}", number) or not 3 <= int(number) <= MAX_DESCRIPTOR:
            reject(option, text, "fd: needs the number of a descriptor from 3, as in fd:3")
        return ReadyWhen(ReadyKind.DESCRIPTOR, int(number))
    if kind == "delay":
        seconds = float(number) if re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", number) else parse_duration(number)
        if seconds is None or seconds > MAX_SECONDS:
            reject(option, text, "delay: needs a number of seconds or a time with units, as in delay:500ms")
        return ReadyWhen(ReadyKind.DELAY, seconds)
    reject(option, text, "must be listen, notify, fd:N or delay:TIME")
