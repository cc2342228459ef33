"""Standard output and error that are closed, full, gone, or never read: lines are lost, and no connection."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.servers import status
from helpers.support import kill_session, slow, wait_until

SERVICE = """
import logging

async def handle(stream):
    async for line in stream:
        logging.warning("worker says %s", "x" * 200)
        stream.write(line)
"""
CONNECTIONS = 200


@dataclass
class Fate:
    """What standard output and error of a server are, and what then happens to them."""

    fd: int
    """For both of them; -1: they are closed."""
    prefix: tuple[str, ...] = ()
    reader: int = -1
    breaks: bool = False
    """Close the reader once the server is ready."""


@contextlib.contextmanager
def fate(kind: str) -> Iterator[Fate]:
    if kind == "closed":
        yield Fate(os.open(os.devnull, os.O_WRONLY), ("sh", "-c", 'exec "$@" >&- 2>&-', "sh"))
    elif kind == "full":
        yield Fate(os.open("/dev/full", os.O_WRONLY))
    elif kind == "terminal":
        reader, writer = pty.openpty()
        yield Fate(writer, ("setsid", "-c"), reader, breaks=True)
    else:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        yield Fate(writer, (), reader, breaks=kind == "no reader")


@contextlib.contextmanager
def serving_with(kind: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server with such an output, and yield it once it is ready and its output is broken."""
    ready, told = os.pipe()
    words = ["serve", "service:handle", "-w", "2", "--bind", f"unix:{folder}/s", "--control", f"{folder}/control"]
    log = [] if kind == "closed" else ["--access-log"]
    with fate(kind) as output:
        process = subprocess.Popen(
            [*output.prefix, sys.executable, "-m", "prefork", *words, *log, "--ready-fd", str(told)],
            stdin=output.fd if kind == "terminal" else subprocess.DEVNULL,
            stdout=output.fd,
            stderr=output.fd,
            cwd=folder,
            pass_fds=[told],
            start_new_session=kind != "terminal",
        )
        os.close(told)
        os.close(output.fd)
        try:
            assert os.read(ready, 10) == b"READY\n"
            if output.breaks:
                os.close(output.reader)
            yield process
        finally:
            os.close(ready)
            if output.reader >= 0 and not output.breaks:
                os.close(output.reader)
            kill_session(process.pid)
            process.wait()


def visit(folder: Path) -> None:
    """Open a connection, have a line echoed, and close it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(f"{folder}/s")
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"


@pytest.mark.parametrize("kind", ["unread", slow("closed"), slow("full"), slow("no reader"), slow("terminal")])
def test_a_broken_output_costs_lines_and_no_connection(kind: str, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    with serving_with(kind, tmp_path) as process:
        for _ in range(CONNECTIONS):
            visit(tmp_path)
        told = status(tmp_path)
        if kind != "closed":
            # Without a standard error there is no log, so nothing of it is dropped.
            wait_until(lambda: status(tmp_path)["totals"]["log_dropped"] >= CONNECTIONS // 2)
        assert told["totals"]["closed"]["done"] >= CONNECTIONS - 8
        assert told["totals"]["handler_failures"] == 0
        assert sum(told["deaths"].values()) == 0
        generation = told["generation"]
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: status(tmp_path)["generation"] > generation and not status(tmp_path)["reloading"], 20)
        visit(tmp_path)
        process.send_signal(signal.SIGUSR1)
        visit(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
