"""The same kills with a listening socket for each worker, which the supervisor has to hold for it."""

from __future__ import annotations

from ..report import Row, absent
from ..scenario import Context
from ..servers import has_option
from . import kill_queued

OPTION = "--reuse-port"


def run(context: Context) -> list[Row]:
    """What waits in a killed worker's own queue is its successor's."""
    name, what = "kill-queued-reuseport", "a listener for each worker"
    if not has_option(OPTION):
        return [absent(name, what, f"option {OPTION}")]
    return kill_queued.measure(context, name, what, OPTION, own_queues=True)
