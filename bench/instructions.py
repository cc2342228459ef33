"""Count the instructions of one exchange with callgrind: repeatable to 0.1 %, where CPU time varies by several percent.

Each work runs twice with different numbers of exchanges; the difference excludes start and stop. Needs valgrind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import BenchError
from .servers import ROOT

#: By work: the contestant's handler, the message, and whether each exchange has a connection of its own.
WORKS = {
    "echo of 1 KiB": ("echo", b"x" * 1024, False),
    "32 pipelined lines": ("lines", (b"x" * 31 + b"\n") * 32, False),
    "connect, echo of 1 KiB, close": ("echo", b"x" * 1024, True),
}
#: Exchanges of the two runs. The first ones specialize the interpreter's instructions and are in both.
FEW, MANY = 300, 1300
SECONDS = 120.0
CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


#: The module of the server.
SERVER = ("bench.contestants.prefork_stream",)


def instructions(work: str, few: int = FEW, many: int = MANY, server: Sequence[str] = SERVER) -> float:
    """Return the instructions of one exchange of `work` with a `server`: a module, and what it is given.

    Raises BenchError without valgrind or with a wrong answer.
    """
    return (_collected(work, many, server) - _collected(work, few, server)) / (many - few)


def _collected(work: str, exchanges: int, server: Sequence[str]) -> int:
    handler, message, closing = WORKS[work]
    with _server([*server, "--work", handler]) as process:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port.strip().isdigit():
            raise BenchError("the server under valgrind did not start")
        for _ in range(exchanges if closing else 1):
            _converse(process.pid, int(port), message, 1 if closing else exchanges)
        process.send_signal(signal.SIGINT)
        report = process.communicate(timeout=SECONDS)[1].decode(errors="replace")
    collected = re.search(r"Collected : (\d+)", report)
    if collected is None:
        raise BenchError(f"callgrind reported no count: {report[-500:]}")
    return int(collected[1])


def _converse(pid: int, port: int, message: bytes, exchanges: int) -> None:
    with socket.create_connection(("127.0.0.1", port), SECONDS) as sock, sock.makefile("rb") as answers:
        # Otherwise a short connection costs one loop iteration more or less, by chance: 5 %.
        _wait_idle(pid)
        for _ in range(exchanges):
            sock.sendall(message)
            if answers.read(len(message)) != message:
                raise BenchError("the server gave a wrong answer")
        # The server must be idle when it is stopped, otherwise the handler's traceback is counted as well.
        _wait_idle(pid)
        sock.shutdown(socket.SHUT_WR)
        answers.read()
    _wait_idle(pid)


def _wait_idle(pid: int) -> None:
    """Wait until the server sleeps, as seen several times in a row. Raises BenchError if it does not within SECONDS."""
    deadline = time.monotonic() + SECONDS
    seen = 0
    while seen < 3:
        time.sleep(0.0005)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        seen = seen + 1 if state == "S" else 0
        if time.monotonic() > deadline:
            raise BenchError("the server under valgrind does not come to rest")


@contextlib.contextmanager
def _server(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind was not found (apt-get install valgrind)")
    # The values of hashes decide how tables are laid out: fixed, or two runs differ.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        [*CALLGRIND, sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    for name in WORKS:
        print(f"{name}: {instructions(name):,.0f} instructions an exchange")
