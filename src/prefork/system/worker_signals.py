"""The signals by which a supervisor speaks to its workers.

A program that `prefork run` runs has every ordinary signal to itself, as in a process of its own. So its worker is
spoken to by real-time signals, which programs seldom use (signal(7)). A service may handle SIGTERM itself, so that its
worker is told to drain by a real-time signal too.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

#: From the end of the range, because the C library takes some from its beginning (signal(7)).
_LAST = getattr(signal, "SIGRTMAX", 64)
_DRAIN = _LAST - 3


@dataclass(frozen=True, slots=True)
class WorkerSignals:
    """What each request is sent as."""

    drain: int
    """Stop accepting, and end when the connections have ended."""
    reopen: int
    """Open the log files again."""
    dump: int
    """Write the stacks of all threads to the status pipe."""


SERVICE_SIGNALS = WorkerSignals(_DRAIN, signal.SIGUSR1, signal.SIGUSR2)
PROGRAM_SIGNALS = WorkerSignals(_DRAIN, _LAST - 4, _LAST - 5)
