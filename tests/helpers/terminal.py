"""A program on a terminal of its own: a pseudo-terminal (pty(7)) of which the test is the other end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

#: What steers a terminal: sequences that begin with ESC (ECMA-48, 5.4).
_CONTROL = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_]")


class Terminal:
    """A running program and what it has written to its terminal until now."""

    def __init__(self, process: subprocess.Popen[bytes], ours: int, theirs: int) -> None:
        self.process = process
        self._ours, self._theirs = ours, theirs
        self.written = bytearray()
        self.settings_before = termios.tcgetattr(theirs)

    def settings(self) -> list[object]:
        """Return the settings of the terminal now (termios(3))."""
        return termios.tcgetattr(self._theirs)

    def send(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size. The kernel's signal goes to the terminal's foreground group, which this one has not."""
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def stop_output(self) -> None:
        """Take no more output, as after Ctrl-S: the program's writes wait (tcflow(3))."""
        termios.tcflow(self._theirs, termios.TCOOFF)

    def hang_up(self) -> None:
        """Close both ends, as a broken connection does (idempotent)."""
        for fd in {self._ours, self._theirs} - {-1}:
            os.close(fd)
        self._ours = self._theirs = -1

    def read(self, seconds: float = 0.05) -> bytes:
        """Return what the program writes within this time."""
        start, end = len(self.written), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._ours], [], [], left)
            if ready:
                with contextlib.suppress(OSError):
                    self.written += os.read(self._ours, 65536)
        return bytes(self.written[start:])

    def wait_for(self, words: str, since: int = 0, seconds: float = 20.0) -> None:
        """Read until the words have been written, whatever steers the terminal between them."""
        end = time.monotonic() + seconds
        while words.encode() not in _CONTROL.sub(b"", bytes(self.written[since:])):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"{words!r} not in {bytes(self.written[since:])!r} ({self.process.poll()})")
            self.read()

    def end(self, seconds: float = 20.0) -> int:
        """Read until the program has ended; return its exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise AssertionError(f"still running: {bytes(self.written[-2000:])!r}")
            self.read()
        self.read()
        return self.process.returncode


@contextlib.contextmanager
def on_terminal(
    arguments: Sequence[str], folder: Path, columns: int = 80, lines: int = 24, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """Run a program on a new terminal of this size, and kill it at the end if it still runs."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        arguments,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})},
    )
    terminal = Terminal(process, ours, theirs)
    try:
        yield terminal
    finally:
        process.kill()
        process.wait()
        terminal.hang_up()
