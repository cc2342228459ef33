"""What every contestant is given: its command line, a listening socket, a TLS context, an event loop to run on.

The socket is the same for all: loopback, TCP_NODELAY (accepted connections inherit it on Linux, so no contestant sets
it for each), a backlog that no burst of this benchmark fills. No handler lives here.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import socket
import ssl
from collections.abc import Coroutine
from dataclasses import dataclass

BACKLOG = 1024
#: The loops that a contestant can run on: asyncio's own, and modules that offer another.
LOOPS = ("asyncio", "uvloop", "blazio", "rloop", "talyn")
#: How much a stream API is asked for at a time.
CHUNK = 256 * 1024
#: The longest line that a contestant accepts if its library does not set a limit itself.
LONGEST_LINE = 64 * 1024


@dataclass(frozen=True)
class Options:
    """How a contestant was called."""

    work: str
    """`echo` (bytes as they come; serves "connect, echo, close" as well) or `lines`."""
    tls: tuple[str, str] | None
    """Paths of certificate and key."""
    loop: str
    """One of LOOPS, for those that can run on any."""

    @property
    def context(self) -> ssl.SSLContext | None:
        """Python's defaults for a server, TLS 1.2 and 1.3; None in the clear."""
        if self.tls is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.tls)
        return context


def options() -> Options:
    """Parse the options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=("echo", "lines"), default="echo")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--loop", choices=LOOPS, default="asyncio")
    given = parser.parse_args()
    return Options(given.work, tuple(given.tls) if given.tls else None, given.loop)


def listener() -> socket.socket:
    """A listening, non-blocking socket on a free port of 127.0.0.1."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def announce(sock: socket.socket) -> None:
    """Tell the port: the server accepts."""
    print(sock.getsockname()[1], flush=True)


def run(main: Coroutine[None, None, None], loop: str) -> None:
    """`asyncio.run` on the loop of that name."""
    if loop == "asyncio":
        asyncio.run(main)
        return
    module = importlib.import_module(loop)
    # talyn has a class only.
    factory = getattr(module, "new_event_loop", None) or module.Loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
