"""The settings of the terminal as they were before the live view, and signals that end the view in every case.

Nothing here knows what is shown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds after a signal until the process ends without waiting for its terminal.
PATIENCE = 2.0


class KeptTerminal:
    """The settings of standard input, read at once, and put back by `restore`."""

    def __init__(self) -> None:
        self._settings: list[Any] | None = None
        with contextlib.suppress(termios.error, OSError):
            self._settings = termios.tcgetattr(0)

    def is_gone(self) -> bool:
        """Return whether the terminal has hung up. It sends SIGHUP to a session only, which this may have left."""
        return self._settings is not None and not os.isatty(0)

    def restore(self) -> None:
        """Put the settings back, whatever output still waits (idempotent)."""
        if self._settings is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSANOW, self._settings)


def end_by_signals(terminal: KeptTerminal, end: Callable[[int], None]) -> None:
    """Call `end` with 128 and the number of a signal that asks for the end.

    A terminal that takes no output (Ctrl-S, a stalled line) blocks the loop in a write. So PATIENCE seconds later the
    process ends by itself. A handler of the loop would not run then; one of Python's interrupts the wait.
    """

    def give_up(code: int) -> None:
        terminal.restore()
        os._exit(code)

    def handle(number: int, _frame: FrameType | None) -> None:
        timer = threading.Timer(PATIENCE, give_up, (128 + number,))
        timer.daemon = True
        timer.start()
        end(128 + number)

    for number in END_SIGNALS:
        signal.signal(number, handle)
