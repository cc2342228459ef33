"""Show how far something is, where one waits for it: a line with a bar on a terminal, plain lines otherwise.

Knows streams and widths only. What is waited for says how far it is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from ..text import escape_controls

#: Characters of the bar between its brackets.
BAR = 20
#: Seconds between two plain lines. What is done within that time prints none.
LINE_INTERVAL = 1.0


class ProgressLine:
    """Shows progress on `stream` until `close`, which leaves nothing of it on a terminal.

    On a terminal there is one line that is drawn again. Otherwise each change is a line, at most one in a second.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began = clock()
        self._line_at = self._began + LINE_INTERVAL
        self._shown = ""
        self._draws = self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, done: int, total: int, text: str, left: int | None = None) -> None:
        """Show that `done` of `total` is done, what is waited for, and perhaps the seconds that are left at most.

        A `total` of 0 is one that is not known.
        """
        text, now = escape_controls(text), self._clock()
        end = "" if left is None else f", {left} s left"
        if total:
            text = f"{done}/{total} {text}"
        if self._draws:
            bar = f"{_bar(done, total)} " if total else ""
            seconds = f"{now - self._began:.0f} s"
            self._write(f"\r{self._cut(f'{bar}{text}{end} ({seconds})')}\x1b[K")
        elif now >= self._line_at and text != self._shown:
            self._shown, self._line_at = text, now + LINE_INTERVAL
            self._write(f"{text}{end}\n")

    def close(self) -> None:
        """Erase the line from a terminal."""
        if self._draws:
            self._write("\r\x1b[K")

    def _cut(self, line: str) -> str:
        # A line that wraps could not be drawn over.
        return line[: max(1, _width(self._stream) - 1)]

    def _write(self, text: str) -> None:
        # Its reader may be gone; what is waited for goes on.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _bar(done: int, total: int) -> str:
    filled = BAR * min(max(done, 0), total) // total
    return f"[{'#' * filled}{'-' * (BAR - filled)}]"


def _width(stream: TextIO) -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80
