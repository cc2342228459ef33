"""Route TLS connections by the name that the client asks for (SNI), without decrypting anything.

    ROUTES=a.example=10.0.0.5:443,*.b.example=10.0.0.6:443 prefork serve sni_router:handle --bind :443
    openssl s_client -connect localhost:443 -servername a.example

The name is in the client's first message, the ClientHello, in the clear. That message is read, checked and passed on
unchanged, and everything else as proxy.py does it, SEND_PROXY too. A wildcard stands for one label, and `*` for every
other name and for clients that name none. What is no ClientHello is closed without a word; an unknown name gets the TLS
alert for it.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator

from proxy import CONNECT_TIMEOUT, Backend, parse, proxy_header, relay

import prefork
from prefork import Stream

#: Seconds for the whole ClientHello, and its maximum size in bytes; one with post-quantum keys has about 2,000.
HELLO_TIMEOUT = 5.0
MAX_HELLO = 16384

UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal alert, in a record of its own (RFC 8446, section 6; RFC 6066, section 3)."""


def parse_routes(text: str) -> dict[str, Backend]:
    """Return the backend of each name of a list such as `a.example=10.0.0.5:443,*=10.0.0.6:443`."""
    pairs = (each.strip().partition("=") for each in text.split(","))
    return {name.lower(): parse(where)[0] for name, _, where in pairs}


routes = parse_routes(os.environ.get("ROUTES", "*=127.0.0.1:8443"))


async def handle(stream: Stream) -> None:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT):
            records, message = await read_hello(stream)
        backend = find(server_name(message))
    except (HelloError, TimeoutError, asyncio.IncompleteReadError):
        return
    if backend is None:
        stream.write(UNRECOGNIZED_NAME)
        return
    upstream = await prefork.connect(backend.host, backend.port, timeout=CONNECT_TIMEOUT)
    upstream.write(proxy_header(stream) + records)
    await relay(stream, upstream)


def find(name: str) -> Backend | None:
    """Return the backend for a name in lower case, "" for none: of the exact name, of its wildcard, of all others."""
    return routes.get(name) or routes.get("*." + name.partition(".")[2]) or routes.get("*")


# --- the ClientHello (RFC 8446, sections 4.1.2 and 5.1) ---------------------------------------------------------------


class HelloError(ValueError):
    """Raised for bytes that are no ClientHello."""


async def read_hello(stream: Stream) -> tuple[bytes, bytes]:
    """Read the ClientHello. Return its records as they came, to be passed on, and the message that they carry.

    What the client has sent behind it stays unread. Raises HelloError, and IncompleteReadError if the input ends.
    """
    records, message = b"", b""
    while len(message) < 4 or len(message) < message_size(message):
        header = await stream.readexactly(5)
        fragment = await stream.readexactly(record_size(header))
        records += header + fragment
        message += fragment
        if message_size(message) > MAX_HELLO or len(records) > 2 * MAX_HELLO:
            raise HelloError("too long")
    return records, message


def record_size(header: bytes) -> int:
    """Return how many bytes follow the 5 bytes of a record's header. Raises HelloError."""
    size = int.from_bytes(header[3:5])
    if header[0] != 22 or header[1] != 3 or not 0 < size <= 16384:
        raise HelloError("no record of a handshake")
    return size


def message_size(message: bytes) -> int:
    """Return the size of the whole message from its beginning; what it is so far must be a ClientHello's."""
    if message[:1] not in (b"", b"\x01"):
        raise HelloError("no ClientHello")
    return 4 + int.from_bytes(message[1:4])


class Fields:
    """What is left of a structure, read from its beginning. Raises HelloError if less is left than is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        taken, self.data = self.data[:size], self.data[size:]
        if len(taken) != size:
            raise HelloError("a field ends too soon")
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Return a vector, whose length comes first, in `size` bytes."""
        return self.take(self.number(size))


def server_name(message: bytes) -> str:
    """Return the name that a whole ClientHello asks for, in lower case; "" if it names none. Raises HelloError."""
    if len(message) != message_size(message):
        raise HelloError("more than a ClientHello")
    hello = Fields(message[4:])
    hello.take(2 + 32)  # version, random
    session, suites, compressions = hello.vector(1), hello.vector(2), hello.vector(1)
    if len(session) > 32 or len(suites) < 2 or len(suites) % 2 or not compressions:
        raise HelloError("a field has a wrong size")
    if not hello.data:
        # As clients of TLS 1.2 did that knew no extensions.
        return ""
    names = [host_name(data) for kind, data in extensions(hello.vector(2)) if kind == 0]
    if hello.data or len(names) > 1:
        raise HelloError("bytes behind the extensions, or an extension twice")
    return names[0] if names else ""


def extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    fields = Fields(data)
    while fields.data:
        yield fields.number(2), fields.vector(2)


def host_name(extension: bytes) -> str:
    """Return the one host name of a list of names (RFC 6066, section 3)."""
    fields = Fields(extension)
    names = Fields(fields.vector(2))
    kind, name = names.number(1), names.vector(2)
    if kind != 0 or names.data or fields.data or not re.fullmatch(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", name):
        raise HelloError("no host name")
    if len(name) > 253:
        raise HelloError("a host name that is too long")
    return name.decode().lower()
