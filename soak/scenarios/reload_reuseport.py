"""The same reloads, fewer of them, with a listening socket for each worker: a successor has to take over its queue."""

from __future__ import annotations

from ..report import Row, absent
from ..scenario import Context
from ..servers import has_option
from . import reload

OPTION = "--reuse-port"
CONNECTIONS = 200_000
RELOADS = 40


def run(context: Context) -> list[Row]:
    """Reload both servers while connections are made all the time."""
    name = "reload-reuseport"
    if not has_option(OPTION):
        return [absent(name, "reloads with a listening socket for each worker", f"option {OPTION}")]
    return reload.measure(context, name, context.count(CONNECTIONS, 200), context.count(RELOADS, 2), OPTION)
