"""Answer HAProxy's agent checks: each connection gets one line and is closed, whether or not it has sent anything.

What the line says is decided in `core/agent_check.py`. Clients are strangers: what they send is not read as anything.
"""

from __future__ import annotations

import asyncio

from ..config import Limits
from ..core.agent_check import Weight, answer
from ..net.server import TCPServer
from ..net.stream import Stream
from .health import unready_reason
from .supervisor_link import Snapshots

#: Clients at a time; others wait in the kernel's queue. HAProxy connects once in two seconds for each server it knows.
MAX_CLIENTS = 64
#: Seconds for the supervisor's answer. HAProxy waits for two seconds, unless it is told otherwise.
ANSWER_TIMEOUT = 1.5
#: Seconds for the client to take the line, and to close.
SEND_TIMEOUT = 2.0
_LIMITS = Limits(
    max_connections=MAX_CLIENTS,
    read_limit=256,
    write_timeout=SEND_TIMEOUT,
    linger_timeout=0.5,
    max_age=ANSWER_TIMEOUT + 2 * SEND_TIMEOUT,
)


def make_server(snapshots: Snapshots) -> TCPServer:
    """Return a server, in the running loop, that answers each connection by what the supervisor says then."""
    loop, weight = asyncio.get_running_loop(), Weight()

    async def handle(stream: Stream) -> None:
        try:
            snapshot = await snapshots.get(ANSWER_TIMEOUT)
        except TimeoutError:
            # Without a line HAProxy keeps what it was told last: neither answer would be known to be true.
            return
        line = answer(snapshot.status, unready_reason(snapshot.status), weight, loop.time())
        stream.write(f"{line}\n".encode())

    return TCPServer(handle, limits=_LIMITS, drain_timeout=SEND_TIMEOUT)
