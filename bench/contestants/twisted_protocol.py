"""Twisted: a `Protocol` and a `LineReceiver`, as in its examples `echoserv.py` and `echoserv_ssl.py`."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet import reactor, ssl
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.basic import LineReceiver
from twisted.protocols.tls import TLSMemoryBIOFactory

from .common import LONGEST_LINE, announce, listener, options


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Lines(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = LONGEST_LINE

    def lineReceived(self, line: bytes) -> None:
        self.sendLine(line)


def main() -> None:
    given = options()
    sock = listener()
    factory = Factory.forProtocol(Lines if given.work == "lines" else Echo)
    factory.noisy = False
    if given.tls:
        pem = "".join(Path(path).read_text() for path in given.tls)
        factory = TLSMemoryBIOFactory(ssl.PrivateCertificate.loadPEM(pem).options(), False, factory)
    reactor.adoptStreamPort(sock.fileno(), socket.AF_INET, factory)
    announce(sock)
    reactor.run()


if __name__ == "__main__":
    main()
