"""Memory that workers share with the program that forked them stays shared."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path
from subprocess import DEVNULL, Popen

from helpers.proc import children
from helpers.support import kill_session, wait_until

PROGRAM = """
import gc
import sys

import prefork

# About 20 MB of objects that a garbage collection visits one by one.
hoard = [[number] for number in range(300_000)]


async def handle(stream):
    async for line in stream:
        for _ in range(3):
            gc.collect()
        stream.write(line)


prefork.serve(handle, bind="127.0.0.1:0", workers=1, control="off")
"""


def private(pid: int) -> int:
    """Return the kilobytes that a process does not share with another."""
    (size,) = re.findall(r"^Private_Dirty: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(size)


def test_a_garbage_collection_in_a_worker_copies_no_memory_from_before_the_fork(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = Popen(
            [sys.executable, "program.py"], cwd=tmp_path, stderr=stderr, stdin=DEVNULL, start_new_session=True
        )
    try:
        wait_until(lambda: "ready: " in log.read_text())
        (port,) = re.findall(r"127.0.0.1:(\d+)", log.read_text())
        (worker,) = children(process.pid)
        with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as sock:
            for _ in range(2):
                sock.sendall(b"collect\n")
                assert sock.recv(100) == b"collect\n"
            assert private(worker) < 12_000, "kilobytes; all of it would be more than 20,000"
    finally:
        kill_session(process.pid)
        process.wait()
