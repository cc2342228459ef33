"""Log files that are rotated and reopened (USR1), and full disks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.proc import children
from helpers.support import kill_session, need, need_root, run_script, wait_until

SERVICE = """
import logging, os

async def handle(stream):
    async for line in stream:
        logging.warning("worker says %s", line.decode().strip())
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@contextmanager
def logging_to(path: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a server as a shell does with `2>> path`; yield it and its port."""
    with path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "2", "--control", "off"]
            + ["--bind", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "ready: " in path.read_text())
        yield process, int(re.findall(r"127.0.0.1:(\d+)", path.read_text())[0])
    finally:
        kill_session(process.pid)
        process.wait()


def say(port: int, word: str) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(f"{word}\n".encode())
        return int(sock.makefile("rb").readline())


def all_pids(pid: int) -> list[int]:
    """Return the pids of the supervisor and its workers."""
    return [pid, *children(pid)]


def writes_to(pid: int, path: Path) -> bool:
    """Return whether a process has this file open."""
    files = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files.append(each.stat())
    return path.exists() and any(os.path.samestat(path.stat(), each) for each in files)


def test_after_a_rotation_every_process_writes_to_the_new_file(folder: Path) -> None:
    path, old = folder / "log", folder / "log.1"
    with logging_to(path, folder) as (process, port):
        path.rename(old)
        say(port, "before")
        wait_until(lambda: "worker says before" in old.read_text())
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: all(writes_to(pid, path) for pid in all_pids(process.pid)))
        seen = set()
        while len(seen) < 2:
            seen.add(say(port, "after"))
        wait_until(lambda: path.read_text().count("worker says after") >= 2)
        # Later workers write to it too, and so they do after another rotation.
        path.rename(folder / "log.2")
        process.send_signal(signal.SIGUSR1)
        wait_until(path.exists)
        os.kill(seen.pop(), signal.SIGKILL)
        wait_until(lambda: "died: signal 9" in path.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert "stopped (exit status 0)" in path.read_text()
        assert "after" not in old.read_text()


@pytest.mark.slow
def test_a_server_that_still_drains_after_an_upgrade_writes_to_the_new_file_too(folder: Path) -> None:
    path = folder / "log"
    with logging_to(path, folder) as (process, port), socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"stay\n")
        worker = int(sock.makefile("rb").readline())
        process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "upgraded: supervisor" in path.read_text(), 30)
        successor = int(re.findall(r"upgraded: supervisor (\d+)", path.read_text())[0])
        path.rename(folder / "log.1")
        os.kill(successor, signal.SIGUSR1)
        wait_until(lambda: all(writes_to(pid, path) for pid in (successor, process.pid, worker)))
        os.kill(successor, signal.SIGTERM)
        sock.close()
        assert process.wait(30) == 0


def test_a_file_that_cannot_be_reopened_is_reported_in_the_old_one(folder: Path) -> None:
    place = folder / "logs"
    place.mkdir()
    with logging_to(place / "log", folder) as (process, port):
        moved = folder / "moved"
        place.rename(moved)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: (moved / "log").read_text().count("cannot be opened again: no such file") == 3)
        assert say(port, "still here")
        wait_until(lambda: "worker says still here" in (moved / "log").read_text())
        assert process.poll() is None


def test_a_signal_to_a_starting_worker_does_not_end_it(folder: Path) -> None:
    path = folder / "log"
    with logging_to(path, folder) as (process, port):
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
            for _ in range(20):
                process.send_signal(signal.SIGUSR1)
            say(port, "x")
        wait_until(lambda: "reloaded: " in path.read_text())
        assert "died" not in path.read_text()


def test_a_full_disk_costs_log_lines_but_no_connection(folder: Path) -> None:
    need_root()
    need("unshare", "mount")
    code = """
import os, socket, subprocess, sys
from pathlib import Path
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"], check=True)
reader, writer = os.pipe()
server = subprocess.Popen([sys.executable, "-m", "prefork", "serve", "service:handle", "-w", "2", "--bind",
    "127.0.0.1:9000", "--control", "off", "--ready-fd", str(writer)], stderr=open("/mnt/log", "ab"), pass_fds=[writer])
assert os.read(reader, 10) == b"READY\\n"
try:
    with open("/mnt/fill", "wb", buffering=0) as fill:
        while True:
            fill.write(b"x" * 512)
except OSError:
    pass
for number in range(300):
    with socket.create_connection(("127.0.0.1", 9000), 10) as sock:
        sock.sendall(b"hello\\n")
        assert sock.makefile("rb").readline()
server.send_signal(1)
os.unlink("/mnt/fill")
with socket.create_connection(("127.0.0.1", 9000), 10) as sock:
    sock.sendall(b"room again\\n")
    assert sock.makefile("rb").readline()
server.terminate()
assert server.wait(20) == 0
text = Path("/mnt/log").read_text()
assert "log records were lost: no space left on device" in text, text
assert "Traceback" not in text
print("well")
"""
    done = run_script(code, prefix=("unshare", "-n", "-m"), cwd=folder, deadline=50)
    assert done.stdout == "well\n", done.stderr
