"""The access log of a server: its file, its rotation, and the workers that write it."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from helpers.opened import open_folder
from helpers.servers import ECHO, serving, status
from helpers.support import need_root, wait_until

from prefork.testing import run_program

PROGRAM = """
import asyncio

async def handle(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(ECHO)
    return tmp_path


def visit(port: int) -> None:
    """Open a connection, have a line echoed, and close it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"


def has_lines(number: int, *paths: Path) -> bool:
    return sum(path.read_text().count("\n") for path in paths) == number


def test_a_rotated_file_is_reopened_by_every_worker() -> None:
    need_root()
    with open_folder() as folder:
        (folder / "service.py").write_text(ECHO)
        log, old = folder / "access.log", folder / "access.log.1"
        options = ("--access-log", str(log), "--log-format", "json", "--user", "nobody", "--insecure-paths")
        with serving(folder, *options) as server:
            assert log.stat().st_uid != 0, "workers must be able to open it again"
            assert log.stat().st_mode & 0o777 == 0o640
            visit(server.port)
            wait_until(lambda: log.read_text().count("\n") == 1)
            log.rename(old)
            os.kill(server.pid, signal.SIGUSR1)
            wait_until(log.exists)
            visits = 1
            while not all(f'"worker": {slot},' in log.read_text() for slot in (0, 1)):
                visit(server.port)
                visits += 1
                wait_until(functools.partial(has_lines, visits, old, log))
            # What is not written yet is written at the end.
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(b"hello\n")
                sock.recv(100)
            assert server.stop() == 0
            assert f"log file {log} cannot be opened again" not in server.stderr()
        lines = [json.loads(line) for path in (old, log) for line in path.read_text().splitlines()]
        assert len(lines) == visits + 1
        assert {(line["received"], line["sent"], line["reason"], line["tls"]) for line in lines} == {
            (6, 6, "done", None)
        }


def test_standard_output_is_the_default_and_a_full_one_harms_nothing(folder: Path) -> None:
    script = folder / "script"
    script.write_text('#!/bin/sh\nexec "$@" > /dev/full\n')
    script.chmod(0o755)
    with serving(folder, "--access-log", workers=1, prefix=[str(script)]) as server:
        for _ in range(5):
            visit(server.port)
        wait_until(lambda: status(folder)["totals"]["log_dropped"] == 5)
        assert "access log: " in server.stderr()
        assert "lost: no space left on device" in server.stderr()


def test_a_program_whose_connections_prefork_accepts_has_one(folder: Path) -> None:
    (folder / "program.py").write_text(PROGRAM)
    log = folder / "log"
    with run_program("program.py", options=("-w", "1", "--access-log", str(log)), cwd=folder) as server:
        visit(server.port)
        wait_until(lambda: log.read_text().endswith("\n"))
        visit(server.port)
        assert server.stop() == 0
    # The kernel counts the peer's FIN as a byte.
    assert len(re.findall(r" [67] 6 - done 0 -\n", log.read_text())) == 2
