"""gevent: `StreamServer`, a greenlet for each connection, as in its example `echoserver.py`.

The TLS context is gevent's own kind: sockets of the standard library's would block every greenlet in a handshake.
"""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

from gevent.server import StreamServer
from gevent.socket import socket
from gevent.ssl import SSLContext

from .common import CHUNK, announce, listener, options


def echo(sock: socket, address: tuple[str, int]) -> None:
    # Otherwise gevent prints a traceback for each reset.
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(CHUNK):
            sock.sendall(data)


def lines(sock: socket, address: tuple[str, int]) -> None:
    """Line by line, through a file object."""
    with sock.makefile(mode="rb") as reader:
        for line in reader:
            sock.sendall(line)


def main() -> None:
    given = options()
    sock = listener()
    tls: dict[str, Any] = {}
    if given.tls:
        tls["ssl_context"] = SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls["ssl_context"].load_cert_chain(*given.tls)
    server = StreamServer(sock, lines if given.work == "lines" else echo, **tls)
    server.start()
    announce(sock)
    server.serve_forever()


if __name__ == "__main__":
    main()
