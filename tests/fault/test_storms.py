"""Signals and commands in any order and number: none is lost that counts, and the server comes to rest as it should."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.proc import session_members, zombies
from helpers.support import need, rounds, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import os

async def handle(stream):
    async for line in stream:
        stream.write(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def ask(server: Server) -> int:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(b"hello\n")
        return int(sock.makefile("rb").readline())


class Clients:
    """Ask again and again, in threads of their own, until the end of the block; then nothing may have been lost."""

    def __init__(self, server: Server, count: int = 2) -> None:
        self._server = server
        self.served = 0
        self.lost: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                ask(self._server)
                self.served += 1
            except (OSError, ValueError) as exc:
                self.lost.append(repr(exc))

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        if exc[0] is None:
            assert self.lost == []
            assert self.served


@rounds(100, 500)
def test_a_storm_of_signals_loses_no_connection_and_ends_with_the_right_number(folder: Path, rounds: int) -> None:
    """HUP, TTIN, TTOU and CHLD, a hundred a second, under load; a minute of them is the catalogue's."""
    dice = random.Random(5)
    control = folder / "control"
    with run_server("service:handle", "-w", "2", "--control", str(control), cwd=folder) as server, Clients(server):
        for _ in range(rounds):
            server.signal(dice.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD]))
            time.sleep(dice.uniform(0, 0.02))
        # The number is that of the last word.
        wait_until(lambda: _at_rest(control) == int(re.findall(r"scaled \(\w+\): (\d+)", server.stderr())[-1]), 30)
        wait_until(lambda: zombies(server.pid) == [])
        assert "Traceback" not in server.stderr()
        assert "died" not in server.stderr()
        assert server.stderr().count("reloading (") <= server.stderr().count("reloaded:") + 1


def _at_rest(control: Path) -> int:
    """How many workers there are when nothing is under way any more; 0: something is."""
    told = request(control, command="status")
    workers = told["workers"]
    quiet = not told["reloading"] and {worker["state"] for worker in workers} == {"ready"}
    return len(workers) if quiet else 0


@rounds(5, 15)
def test_scaling_up_and_down_signals_each_leaving_worker_once(folder: Path, rounds: int) -> None:
    """1, 8, 1 workers under load, with every signal that the supervisor sends on record."""
    need("strace")
    trace = folder / "trace"
    strace = ("strace", "-qq", "-e", "trace=pidfd_send_signal,pidfd_open", "-o", str(trace))
    control = folder / "control"
    # A stop orders a worker again that drains without end.
    options = ("-w", "1", "--reload-drain-timeout", "30", "--control", str(control))
    with run_server("service:handle", *options, cwd=folder, prefix=strace) as server:
        with Clients(server):
            for turn in range(2 * rounds):
                workers = 1 if turn % 2 else 8
                assert request(control, command="scale", workers=workers)["workers"] == workers
        assert request(control, command="stop")["ok"]
        assert server.wait() == 0
        told = Counter[tuple[str, str]]()
        pid_of: dict[str, str] = {}
        for line in trace.read_text().splitlines():
            opened = re.search(r"pidfd_open\((\d+), 0\)\s+= (\d+)", line)
            if opened:
                pid_of[opened[2]] = opened[1]
            sent = re.search(r"pidfd_send_signal\((\d+), (SIG\w+),", line)
            if sent:
                told[pid_of[sent[1]], sent[2]] += 1
        assert len(told) > 6 * rounds
        assert set(told.values()) == {1}, "no worker is ordered twice"
        assert not {name for _, name in told} & {"SIGKILL", "SIGTERM"}, "and none had to be killed"


def request(path: Path, **words: Any) -> dict[str, Any]:
    """What the control socket answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(json.dumps(words).encode() + b"\n")
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline())
        return answer


@rounds(3, 8)
def test_any_sequence_of_requests_ends_in_a_clean_stop(folder: Path, rounds: int) -> None:
    """Random sequences of reloads (good and bad), upgrades, scaling, deaths and stops; thousands of them, without
    processes, are in tests/unit."""
    for seed in range(rounds):
        dice = random.Random(seed)
        (folder / "service.py").write_text(SERVICE)
        with run_server("service:handle", "-w", "2", "--control", f"{folder}/control", cwd=folder) as server:
            for _ in range(8):
                _disturb(server, folder, dice)
                time.sleep(dice.choice([0, 0.01, 0.1, 0.3]))
            (folder / "service.py").write_text(SERVICE)
            wait_until(lambda: _serves(server), 30)
            for pid in _supervisors(server.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not _supervisors(server.pid), 30, f"the end, seed {seed}")
            wait_until(lambda: session_members(server.pid) == [], 30, f"the end of everybody, seed {seed}")
            assert server.wait() in (0, None)
            assert "Traceback" not in server.stderr()
        assert not (folder / "control").exists()


def _disturb(server: Server, folder: Path, dice: random.Random) -> None:
    what = dice.choice(["reload", "break", "mend", "upgrade", "more", "fewer", "kill a worker", "reload twice"])
    supervisors = _supervisors(server.pid)
    target = dice.choice(supervisors or [server.pid])
    number = {
        "reload": signal.SIGHUP,
        "reload twice": signal.SIGHUP,
        "upgrade": signal.SIGUSR2,
        "more": signal.SIGTTIN,
        "fewer": signal.SIGTTOU,
    }.get(what)
    if what == "break":
        (folder / "service.py").write_text("raise RuntimeError")
    elif what == "mend":
        (folder / "service.py").write_text(SERVICE)
    elif what == "kill a worker":
        workers = [pid for pid in session_members(server.pid) if pid not in supervisors]
        if workers:
            # It may have ended by itself meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
    elif number is not None and _ready_for_signals(target):
        for _ in range(2 if what == "reload twice" else 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, number)


def _ready_for_signals(pid: int) -> bool:
    """Whether it has come so far as to heed them: before that they do what they do to any program."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    blocked = int(dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)["SigBlk"], 16)
    return bool(blocked & (1 << signal.SIGHUP - 1))


def _supervisors(leader: int) -> list[int]:
    """Those processes of the session that are not children of another one of us that is a supervisor's worker."""
    found = []
    for pid in session_members(leader):
        with contextlib.suppress(OSError):
            if b"worker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _serves(server: Server) -> bool:
    try:
        return ask(server) > 0
    except (OSError, ValueError):
        return False


@rounds(2, 5)
def test_connections_are_accepted_as_soon_as_ready_is_reported(folder: Path, rounds: int) -> None:
    """A client that connects as soon as READY is written is served."""
    for _ in range(rounds):
        with run_server("service:handle", "-w", "2", bind=[f"unix:{folder}/socket"], cwd=folder) as server:
            for _ in range(3):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(10)
                    sock.connect(f"{folder}/socket")
                    sock.sendall(b"hello\n")
                    assert int(sock.makefile("rb").readline()) in server.worker_pids()
            assert server.stop() == 0


def test_status_and_events_agree_after_a_storm(folder: Path) -> None:
    with run_server("service:handle", "-w", "3", "--control", f"{folder}/control", cwd=folder) as server:
        for _ in range(3):
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            wait_until(lambda: len(server.worker_pids()) == 3)
            begun = server.stderr().count("reloading (")
            server.signal(signal.SIGHUP)
            wait_until(lambda begun=begun: server.stderr().count("reloading (") > begun)
        wait_until(lambda: _at_rest(folder / "control") == 3)
        told = request(folder / "control", command="status")
        assert {worker["pid"] for worker in told["workers"]} == set(server.worker_pids())
        assert sum(told["deaths"].values()) == len(re.findall(r"\) died", server.stderr()))
