"""A Python script that forks and runs beside the test: its output, its children, and a certain end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.proc import session_members
from helpers.support import kill_session, wait_until

DEADLINE = 30.0
#: What several processes print stays in one piece: unbuffered, `print` writes its parts one by one.
ONE_WRITE = {**os.environ, "PYTHONUNBUFFERED": ""}
#: A shell's background job starts with SIGINT ignored, and these scripts are to hear it.
HEED_SIGINT = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
TAKE_TERMINAL = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


class Script:
    """A running script. It and its children print to files, so that none of them blocks on a full pipe."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def lines(self, count: int) -> list[list[str]]:
        """The first `count` complete lines of its output, split at blanks, once they are there."""
        wait_until(lambda: self.out.count("\n") >= count, DEADLINE, f"{count} lines, got {self.out!r} {self.err!r}")
        return [line.split() for line in self.out.splitlines()[:count]]

    def others(self) -> list[int]:
        """The living processes of its session, without the script itself."""
        return [pid for pid in session_members(self.pid) if pid != self.pid]

    def signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def end(self) -> int:
        """Its exit status (negative: the signal that killed it), once it has ended."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running\n--- stdout\n{self.out}\n--- stderr\n{self.err}") from None


@contextmanager
def running(code: str, *arguments: str, prefix: tuple[str, ...] = (), terminal: int | None = None) -> Iterator[Script]:
    """Run `code` in a session of its own, and kill all processes of it at the end of the block.

    `prefix` is a command before Python's; `terminal` becomes its standard input and controlling terminal.
    """
    prelude = HEED_SIGINT + (TAKE_TERMINAL if terminal is not None else "")
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-X", "faulthandler", "-c", prelude + textwrap.dedent(code), *arguments],
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env=ONE_WRITE,
            )
        try:
            yield Script(process, out, err)
        finally:
            kill_session(process.pid)
            process.wait(DEADLINE)
