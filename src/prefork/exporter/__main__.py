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
from collections.abc import Callable, Iterable

from ..core.exporter_settings import BEAT_INTERVAL, LOADED, SERVE, ExporterSettings, decode
from ..net.server import TCPServer
from ..observe.logs import configure
from ..system.credentials import Identity, drop_privileges
from ..system.parent_death import die_with_parent
from ..system.processes import set_title
from ..system.signals import ignore_without_inheriting
from . import agent
from .supervisor_link import Snapshots

MakeServer = Callable[[Snapshots], TCPServer]
#: Only the end of the connection to the supervisor, or SIGKILL, ends this process: a terminal or a service manager
#: signals the whole group, and the supervisor decides.
_IGNORED_SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)
#: Below the workers, which serve the connections that all this is about (setpriority(2)).
_NICENESS = 5
#: Seconds for the supervisor to answer a beat.
_BEAT_TIMEOUT = 5.0


def main() -> None:
    settings = decode(sys.argv[1])
    _close_others((*settings.listeners, *settings.agents, settings.link))
    # Clients are strangers: what they do wrong is not for the server's log.
    configure(settings.log_format, "error", process="metrics")
    ignore_without_inheriting(_IGNORED_SIGNALS)
    set_title("metrics")
    # Before the change of user, because the next one may not be permitted to read these files.
    makers = _makers(settings)
    os.chdir("/")
    os.nice(_NICENESS)
    if settings.uid is not None and settings.gid is not None:
        drop_privileges(Identity(settings.uid, settings.gid, settings.user))
    # After the change of user, which clears it (prctl(2)).
    die_with_parent(settings.parent, signal.SIGKILL)
    if settings.waits:
        # Its supervisor does not serve yet, and the predecessor's process answers at these addresses.
        os.write(settings.link, LOADED)
        if os.read(settings.link, len(SERVE)) != SERVE:
            return
    asyncio.run(_serve(settings, makers))


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
            await snapshots.get(_BEAT_TIMEOUT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(gone.wait(), BEAT_INTERVAL)


def _makers(settings: ExporterSettings) -> list[tuple[MakeServer, tuple[int, ...]]]:
    """Return what makes the server of each option that was given, and the descriptors of its listening sockets."""
    found: list[tuple[MakeServer, tuple[int, ...]]] = []
    if settings.agents:
        found.append((agent.make_server, settings.agents))
    if settings.listeners:
        # Only for these, because it needs prometheus-client.
        from .routes import make_pages

        found.append((make_pages, settings.listeners))
    return found


async def _serve(settings: ExporterSettings, makers: Iterable[tuple[MakeServer, tuple[int, ...]]]) -> None:
    gone = asyncio.Event()
    snapshots = Snapshots(gone.set)

    await snapshots.connect(socket.socket(fileno=settings.link))
    servers = [_listening(make(snapshots), listeners) for make, listeners in makers]
    await _beat(snapshots, gone)
    for server in servers:
        await server.drain()
    snapshots.close()


def _listening(server: TCPServer, listeners: Iterable[int]) -> TCPServer:
    for fd in listeners:
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        server.add_socket(listener)
    return server


if __name__ == "__main__":
    main()
