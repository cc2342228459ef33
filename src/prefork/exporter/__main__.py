"""The process of `--metrics`, as its supervisor starts it, from start to end.

Its argument is a line of JSON (`core/exporter_settings.py`). No code of the service runs here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import Iterable

from ..core.exporter_settings import BEAT_INTERVAL, ExporterSettings, decode
from ..observe.logs import configure
from ..system.credentials import Identity, drop_privileges
from ..system.parent_death import die_with_parent
from ..system.processes import set_title
from ..system.signals import ignore_without_inheriting
from . import routes
from .http import Request, Response
from .server import make_server
from .supervisor_link import Snapshots

#: Only the end of the connection to the supervisor, or SIGKILL, ends this process: a terminal or a service manager
#: signals the whole group, and the supervisor decides.
_IGNORED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)
#: Below the workers, which serve the connections that all this is about (setpriority(2)).
_NICENESS = 5


def main() -> None:
    settings = decode(sys.argv[1])
    _close_others((*settings.listeners, settings.link))
    # Clients are strangers: what they do wrong is not for the server's log.
    configure(settings.log_format, "error", process="metrics")
    ignore_without_inheriting(_IGNORED_SIGNALS)
    set_title("metrics")
    os.chdir("/")
    os.nice(_NICENESS)
    if settings.uid is not None and settings.gid is not None:
        drop_privileges(Identity(settings.uid, settings.gid, settings.user))
    # After the change of user, which clears it (prctl(2)).
    die_with_parent(settings.parent, signal.SIGKILL)
    asyncio.run(_serve(settings))


def _close_others(kept: Iterable[int]) -> None:
    """Close what else was inherited: the program that started the supervisor may have left descriptors open in it."""
    for before, after in itertools.pairwise((2, *sorted(kept), os.sysconf("SC_OPEN_MAX"))):
        os.closerange(before + 1, after)


async def _beat(snapshots: Snapshots, gone: asyncio.Event) -> None:
    """Ask for the status now and then until the supervisor is gone: it replaces a process that it does not hear from.

    The first answer shows that both sides understand each other, before a client needs one.
    """
    while not gone.is_set():
        with contextlib.suppress(TimeoutError):
            await snapshots.get(routes.ANSWER_TIMEOUT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), BEAT_INTERVAL)


async def _serve(settings: ExporterSettings) -> None:
    gone = asyncio.Event()
    snapshots = Snapshots(gone.set)

    async def respond(request: Request) -> Response:
        return await routes.respond(request, snapshots)

    await snapshots.connect(socket.socket(fileno=settings.link))
    server = make_server(respond)
    for fd in settings.listeners:
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        server.add_socket(listener)
    await _beat(snapshots, gone)
    await server.drain()
    snapshots.close()


if __name__ == "__main__":
    main()
