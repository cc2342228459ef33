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
from collections.abc import Iterator

from .errors import BenchError
from .servers import ROOT

#: Bytes of one exchange, by work: an echo of 1 KiB, and 32 pipelined lines of 32 bytes.
MESSAGES = {"echo": b"x" * 1024, "lines": (b"x" * 31 + b"\n") * 32}
#: Exchanges of the two runs. The smaller number covers the warm-up of the interpreter's specializing instructions.
FEW, MANY = 300, 1300
SECONDS = 120.0
CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


def instructions(work: str, few: int = FEW, many: int = MANY) -> float:
    """Return the instructions of one exchange of `work`. Raise BenchError without valgrind or an answer."""
    return (_collected(work, many) - _collected(work, few)) / (many - few)


def _collected(work: str, exchanges: int) -> int:
    with _server(work) as process:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port.strip().isdigit():
            raise BenchError("the server under valgrind did not start")
        message = MESSAGES[work]
        with socket.create_connection(("127.0.0.1", int(port)), SECONDS) as sock, sock.makefile("rb") as answers:
            for _ in range(exchanges):
                sock.sendall(message)
                if answers.read(len(message)) != message:
                    raise BenchError(f"wrong answer to {work}")
            # The server must be idle when it is stopped, otherwise the handler's traceback is counted as well.
            sock.shutdown(socket.SHUT_WR)
            answers.read()
        process.send_signal(signal.SIGINT)
        report = process.communicate(timeout=SECONDS)[1].decode(errors="replace")
    collected = re.search(r"Collected : (\d+)", report)
    if collected is None:
        raise BenchError(f"callgrind reported no count: {report[-500:]}")
    return int(collected[1])


@contextlib.contextmanager
def _server(work: str) -> Iterator[subprocess.Popen[bytes]]:
    if shutil.which("valgrind") is None:
        raise BenchError("valgrind was not found (apt-get install valgrind)")
    # The values of hashes decide how tables are laid out: fixed, or two runs differ.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        [*CALLGRIND, sys.executable, "-m", "bench.contestants.prefork_stream", "--work", work],
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
    for name in MESSAGES:
        print(f"{name}: {instructions(name):,.0f} instructions an exchange")
