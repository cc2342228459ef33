"""A TCP proxy: every connection goes to the server that has the fewest, both directions at once.

    BACKENDS=10.0.0.5:80,10.0.0.6:80 prefork serve proxy:handle --bind :9000
    nc localhost 9000

A slow reader holds up its sender: neither direction keeps more than about 128 KiB. The end of one direction is passed
on while the other goes on, and a reset is passed on as a reset. When the worker drains, connections go on until one of
their ends closes them, or until --drain-timeout. The counts are per worker. With SEND_PROXY=2, or 1, a header of that
version of the PROXY protocol tells the backend of the client.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import prefork
from prefork import Stream

CONNECT_TIMEOUT = 5.0
SEND_PROXY = os.environ.get("SEND_PROXY", "")


@dataclass
class Backend:
    """A server behind the proxy."""

    host: str
    port: int
    connections: int = 0


def parse(text: str) -> list[Backend]:
    """Return the backends of a list such as `10.0.0.5:80,[2001:db8::5]:80`."""
    pairs = (each.strip().rpartition(":") for each in text.split(","))
    return [Backend(host.strip("[]"), int(port)) for host, _, port in pairs]


backends = parse(os.environ.get("BACKENDS", "127.0.0.1:8000"))


async def handle(stream: Stream) -> None:
    header, failures = proxy_header(stream), []
    for backend in sorted(backends, key=lambda each: each.connections):
        backend.connections += 1
        try:
            upstream = await prefork.connect(backend.host, backend.port, timeout=CONNECT_TIMEOUT)
        except OSError as exc:
            failures.append(exc)
        else:
            upstream.write(header)
            return await relay(stream, upstream)
        finally:
            backend.connections -= 1
    raise ExceptionGroup("no backend can be reached", failures)


def proxy_header(client: Stream) -> bytes:
    """Return the PROXY header for a backend of this client; b"" if none is to be sent."""
    return prefork.proxy_header(client, version=1 if SEND_PROXY == "1" else 2) if SEND_PROXY else b""


async def relay(client: Stream, upstream: Stream) -> None:
    """Pass on what either end sends, until both directions have ended."""
    answers = asyncio.create_task(copy(upstream, client))
    try:
        await copy(client, upstream)
        await answers
    except asyncio.CancelledError:
        # The server has aborted the client's connection.
        upstream.abort()
        raise
    upstream.close()


async def copy(source: Stream, target: Stream) -> None:
    """Pass on one direction. Reset both connections if one of them breaks.

    A peer that has ended its direction and goes away after that is noticed when it is sent something.
    """
    try:
        while data := await source.read(65536):
            await target.send(data)
        if target.can_write_eof():
            target.write_eof()
        else:
            # TLS cannot end one direction on its own.
            target.close()
    except OSError:
        source.abort()
        target.abort()
