"""Signals at the worst moment: none is lost, none ends in a traceback, and no process of the server stays behind."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.proc import children, cpu_share, session_members, zombies
from helpers.support import kill_session, rounds, wait_until

from prefork.testing import run_server

SERVICE = """
async def handle(stream):
    async for line in stream:
        stream.write(line)

async def stay(stream):
    await stream.wait_draining()
    await stream.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(SERVICE)
    return tmp_path


@pytest.mark.slow
@rounds(5, 15)
def test_a_stop_at_any_moment_of_the_start_ends_all_processes(folder: Path, rounds: int) -> None:
    """Whether workers exist, are being forked, import, or have just begun to accept: they drain and end."""
    command = [sys.executable, "-m", "prefork", "serve", "app:handle", "-w", "4", "--bind", "127.0.0.1:0"]
    dice = random.Random(2)
    for number in range(rounds):
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: "listening" in (folder / "log").read_text())
            if number:
                # From here a start takes about 10 ms.
                end = time.monotonic() + dice.uniform(0, 0.04)
                while time.monotonic() < end:
                    pass
            else:
                wait_until(lambda: len(session_members(process.pid)) > 1)  # noqa: B023  # used within the loop
            process.send_signal(signal.SIGTERM if number % 2 else signal.SIGINT)
            code = process.wait(30)
            said = (folder / "log").read_text()
            # Between the bind and the first fork the signal is not handled yet, and ends the process.
            assert code == 0 or "stopping" not in said, said
            assert "killed" not in said
            assert code == 0 or code in (-signal.SIGTERM, 130), (code, said)
            assert "Traceback" not in said
            assert not session_members(process.pid)
        finally:
            kill_session(process.pid)
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_many_stop_signals_end_the_server_cleanly(folder: Path, numbers: tuple[int, ...]) -> None:
    """An impatient person at the keyboard: signals go on to come until the process is gone."""
    for _ in range(2):
        with run_server("app:stay", "-w", "2", bind=["127.0.0.1:0", f"unix:{folder}/socket"], cwd=folder) as server:
            sent = 0
            while server._process.poll() is None:
                server.signal(numbers[sent % len(numbers)])
                sent += 1
                time.sleep(0.001)
            assert server.wait() == 0
            assert not (folder / "socket").exists()
            assert "Traceback" not in server.stderr()
            assert not [pid for pid in session_members(server.pid) if pid != server.pid]


def test_workers_that_receive_sigterm_are_replaced(folder: Path) -> None:
    """SIGTERM to a worker at a random moment, 30 times: each worker ends, and each one is replaced."""
    dice = random.Random(3)
    with run_server("app:handle", "-w", "4", cwd=folder) as server:
        told = set()
        for _ in range(30):
            workers = server.worker_pids()
            if workers:
                victim = dice.choice(workers)
                told.add(victim)
                os.kill(victim, signal.SIGTERM)
            time.sleep(dice.uniform(0, 0.02))
        wait_until(lambda: not told & set(server.worker_pids()), what="the end of all that were told")
        found = re.findall(r"worker \d \(pid (\d+)\) died: (.*?), restarting", server.stderr())
        wait_until(lambda: len(re.findall(r"pid \d+\) died", server.stderr())) == len(told), what="news of each, once")
        assert {cause for _, cause in found} <= {"exit status 0", "signal 15 (SIGTERM)"}
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD])
def test_signals_that_a_worker_ignores(folder: Path, number: int) -> None:
    """A terminal sends SIGINT and SIGHUP to the whole process group; only the supervisor acts on them."""
    with run_server("app:handle", "-w", "2", cwd=folder) as server:
        before = server.worker_pids()
        for pid in before:
            os.kill(pid, number)
        server.signal(signal.SIGCHLD)
        # Signals are handled in order, so the stop shows that the earlier ones had no effect.
        assert server.stop() == 0
        assert "died" not in server.stderr()
        assert server.stderr().count(" closed, none aborted") == 2


def test_the_loss_of_the_terminal_costs_no_connection(folder: Path) -> None:
    """As when an ssh session breaks: the kernel sends SIGHUP to the foreground group, and writing logs fails."""
    ours, theirs = pty.openpty()
    ready, told = os.pipe()
    try:
        process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "prefork", "serve", "app:handle", "-w", "2", "--control", "off"]
            + ["--bind", f"unix:{folder}/socket", "--ready-fd", str(told)],
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            pass_fds=[told],
        )
    finally:
        os.close(theirs)
        os.close(told)
    try:
        assert os.read(ready, 10) == b"READY\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(f"{folder}/socket")
            sock.sendall(b"before\n")
            assert sock.recv(100) == b"before\n"
            before = set(children(process.pid))
            os.close(ours)
            ours = -1
            wait_until(lambda: set(children(process.pid)) - before, what="the reload that SIGHUP asks for")
            sock.sendall(b"after\n")
            assert sock.recv(100) == b"after\n"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(f"{folder}/socket")
            sock.sendall(b"new\n")
            assert sock.recv(100) == b"new\n"
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if ours >= 0:
            os.close(ours)
        os.close(ready)
        kill_session(process.pid)
        process.wait()


def test_a_server_under_nohup_reloads_on_sighup(folder: Path) -> None:
    with run_server("app:handle", "-w", "1", cwd=folder, prefix=("nohup",)) as server:
        before = server.worker_pids()
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reloaded: " in server.stderr())
        wait_until(lambda: not set(before) & set(server.worker_pids()))
        assert server.stop() == 0


def test_children_of_other_code_are_not_reaped(folder: Path) -> None:
    """A program that becomes the server (exec) may have children already: their end is no worker's end, and costs no
    processor time."""
    shell = ("sh", "-c", '(exit 3) & (sleep 0.1; exit 4) & exec "$@"', "sh")
    with run_server("app:handle", "-w", "2", cwd=folder, prefix=shell) as server:
        wait_until(lambda: len(zombies(server.pid)) == 2, what="the end of both")
        assert cpu_share(server.pid) < 0.3, "it spins"
        assert "died" not in server.stderr()
        assert len(server.worker_pids()) == 2
        assert server.stop() == 0
