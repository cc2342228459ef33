"""Serve HTTP to scrapers and browsers by prefork's own streams: which requests are read, answered, and for how long.

What is answered is in `routes.py`. Clients are strangers: each wait has a deadline, and their number a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from ..config import MIB, Limits
from ..net.server import TCPServer
from ..net.stream import Stream
from .http import MAX_HEAD, BadRequest, Request, Response, is_loopback, names_loopback, parse_request, text

#: Clients at a time; others wait in the kernel's queue.
MAX_CLIENTS = 64
#: With more clients than this no connection is kept open between requests, because others may wait.
MAX_KEPT = MAX_CLIENTS // 2
#: Seconds for the first request of a connection to arrive, and from a response to the end of the next request.
HEAD_TIMEOUT = 5.0
#: Seconds for the first request while more than MAX_KEPT clients are there: slow ones must not keep the rest waiting.
CROWDED_TIMEOUT = 0.5
IDLE_TIMEOUT = 75.0
#: Seconds to read a response, and bytes per second that a client has to read of a long one.
SEND_TIMEOUT = 5.0
MIN_RATE = MIB
#: Seconds after which a connection is closed with its next response, and the bound if there is none.
KEEP_TIMEOUT = 600.0
MAX_AGE = 700.0
_CHUNK = 65536
_LIMITS = Limits(
    max_connections=MAX_CLIENTS,
    read_limit=MAX_HEAD,
    # `drain` waits until the kernel has everything, so that the deadline here covers the whole response.
    drain_above=1,
    write_timeout=SEND_TIMEOUT,
    max_age=MAX_AGE,
    linger_timeout=1.0,
)

Respond = Callable[[Request], Awaitable[Response]]


def make_server(respond: Respond) -> TCPServer:
    """Return a server, in the running loop, that answers each request by `respond`."""

    async def handle(stream: Stream) -> None:
        await _serve(stream, respond, server)

    server = TCPServer(handle, limits=_LIMITS, drain_timeout=SEND_TIMEOUT)
    return server


async def _serve(stream: Stream, respond: Respond, server: TCPServer) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + KEEP_TIMEOUT
    timeout = HEAD_TIMEOUT if server.connections <= MAX_KEPT else CROWDED_TIMEOUT
    try:
        while True:
            async with asyncio.timeout(timeout):
                head = await stream.readuntil(b"\r\n\r\n")
            request = parse_request(head)
            response = _refuse_foreign(stream, request) or await respond(request)
            crowded = server.connections > MAX_KEPT or stream.draining or loop.time() > end
            keep_alive = request.keep_alive and not crowded
            await _send(stream, response, request.method == "HEAD", keep_alive)
            if not keep_alive:
                return
            timeout = IDLE_TIMEOUT
    except BadRequest as exc:
        await _send(stream, text(exc.status, str(exc)), False, False)
    except asyncio.LimitOverrunError:
        reason = f"the head is longer than {MAX_HEAD} bytes"
        await _send(stream, text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason), False, False)
    except TimeoutError:
        stream.transport.abort()
    except (asyncio.IncompleteReadError, ConnectionError):
        # The client has left, and the caller closes.
        return


def _refuse_foreign(stream: Stream, request: Request) -> Response | None:
    """Refuse what a page of another site has asked for in a browser of this machine (DNS rebinding): its Host field has
    a name of that site, which now resolves to this machine."""
    if not is_loopback(stream.get_extra_info("sockname")) or names_loopback(request.fields.get("host", "localhost")):
        return None
    return text(HTTPStatus.FORBIDDEN, "on this address the Host field must be localhost or an address")


async def _send(stream: Stream, response: Response, head_only: bool, keep_alive: bool) -> None:
    """Send a response. If the client takes too long to read it, abort the connection."""
    stream.write(response.head(keep_alive))
    body = memoryview(b"" if head_only else response.body)
    try:
        async with asyncio.timeout(SEND_TIMEOUT + len(body) / MIN_RATE):
            for start in range(0, len(body), _CHUNK):
                stream.write(body[start : start + _CHUNK])
                await stream.drain()
            await stream.drain()
    except (TimeoutError, ConnectionError):
        stream.transport.abort()
