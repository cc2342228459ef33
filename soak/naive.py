"""A pre-fork echo server that loses connections, for the control run: each worker binds a socket of its own.

SO_REUSEPORT spreads new connections over all of them, and only the worker holds its socket, so the kernel resets what
waits in the queue of a killed worker. It shares no code with prefork.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator

from . import payload, proc
from .errors import HarnessError

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def serving(port: int, workers: int) -> Iterator[list[int]]:
    """The pids of `workers` workers that listen on 127.0.0.1:`port`. In the end none is left."""
    pids: list[int] = []
    try:
        for _ in range(workers):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _be_worker(port, writer)
            os.close(writer)
            pids.append(pid)
            told = os.read(reader, 1)
            os.close(reader)
            if not told:
                raise HarnessError(f"a worker of the control run could not listen on port {port}")
        yield list(pids)
    finally:
        for pid in pids:
            proc.kill(pid)
        for pid in pids:
            os.waitpid(pid, 0)


def _be_worker(port: int, ready: int) -> None:
    """Run as a child; never return."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(4096)
            os.write(ready, b"1")
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError, payload.Wrong):
                    _echo(connection)
    finally:
        os._exit(1)


def _echo(connection: socket.socket) -> None:
    while True:
        received = b""
        while missing := payload.missing(received):
            data = connection.recv(missing)
            if not data:
                return
            received += data
        head, body = received[: payload.HEAD.size], received[payload.HEAD.size :]
        connection.sendall(payload.answer(head, body, os.getpid()))
