"""The environment of a program: what tells it which worker it is, and nothing that would mislead it."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: Removed: only the supervisor is spoken to by them (sd_listen_fds(3), sd_notify(3)).
_REMOVED = (
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
)
#: Servers start as many workers as this says: in each worker they would do so again.
_ONE_WORKER = {"WEB_CONCURRENCY": "1"}


def enter(slot: int, workers: int, generation: int, more: Mapping[str, str]) -> None:
    """Make the environment of this process that of a program in this worker, with `more` variables."""
    for name in _REMOVED:
        os.environ.pop(name, None)
    os.environ.update(
        {
            "PREFORK_WORKER_ID": str(slot),
            "PREFORK_WORKERS": str(workers),
            "PREFORK_GENERATION": str(generation),
            **_ONE_WORKER,
            **more,
        }
    )
