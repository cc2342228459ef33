"""gevent's StreamServer, line by line: HOST PORT."""

import os
import sys

from gevent.server import StreamServer


def answer(sock, address):
    with sock.makefile("rwb") as file:
        for line in file:
            file.write(line.rstrip(b"\n") + f" {os.getpid()}\n".encode())
            file.flush()


if __name__ == "__main__":
    StreamServer((sys.argv[1], int(sys.argv[2])), answer).serve_forever()
