"""An established connection that asks again and again, and how long each answer took: what others feel of a flood.

`python -m soak.prober` is the process; `probing` is its other end. It is one of its own, as a client that is busy with
the flood would measure itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from .errors import HarnessError
from .load import ROOT

#: Seconds between questions.
INTERVAL = 0.005
_LINE = b"probe " + b"x" * 1017 + b"\n"
#: Goes before all others on its processor, where it may: it is to measure the server, and not its neighbours.
_NICE = -15


class Prober:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> list[float]:
        """The seconds of each answer. Raises HarnessError if there was one that did not come."""
        out, _ = self._process.communicate("\n", timeout=60)
        if self._process.returncode:
            raise HarnessError("an established connection was not answered; the error is above")
        found: list[float] = json.loads(out)
        return found


@contextlib.contextmanager
def probing(port: int, authority: str = "", processors: Sequence[int] = ()) -> Iterator[Prober]:
    """Ask `port` of 127.0.0.1, over TLS if there is an `authority`, on these processors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.prober", str(port), authority, json.dumps(list(processors))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise HarnessError("an established connection could not be established; the error is above")
        yield Prober(process)
    finally:
        process.kill()
        process.communicate()


def main(port: str, authority: str, processors: str) -> None:
    """Be the process: ask until standard input has something, then tell."""
    if chosen := json.loads(processors):
        os.sched_setaffinity(0, chosen)
    with contextlib.suppress(PermissionError):
        os.nice(_NICE)
    sock: socket.socket = socket.create_connection(("127.0.0.1", int(port)), 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if authority:
        sock = ssl.create_default_context(cafile=authority).wrap_socket(sock, server_hostname="localhost")
    file = sock.makefile("rb")
    answers: list[float] = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not poll.poll(INTERVAL * 1000):
        begun = time.perf_counter()
        sock.sendall(_LINE)
        if not file.readline():
            sys.exit("the server has ended an established connection")
        answers.append(time.perf_counter() - begun)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
