"""What workers die of is told apart and counted: exit code, signal, core, memory, hang, boot, a drain without end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers.support import need_root, slow, wait_until

from prefork.testing import Server, run_server

SERVICE = """
import asyncio, ctypes, os, resource, signal, sys, threading, time

async def handle(stream):
    async for line in stream:
        word = line.decode().strip()
        if word == "exit 0":
            os._exit(0)
        elif word == "exit 7":
            os._exit(7)
        elif word == "sys.exit":
            asyncio.get_running_loop().call_soon(sys.exit, 9)
        elif word == "segfault":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            ctypes.string_at(0)
        elif word == "abort":
            resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
            os.abort()
        elif word == "processor":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
            threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
        elif word == "memory":
            hoard = []
            while True:
                hoard.append(os.urandom(1 << 20))
        elif word == "hang":
            time.sleep(60)
        elif word == "deaf":
            for number in (signal.SIGTERM, signal.SIGRTMAX - 3):
                asyncio.get_running_loop().remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
        else:
            stream.write(b"%d\\n" % os.getpid())
            continue
        await stream.send(b"done\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


@contextmanager
def serving(folder: Path, *options: str, prefix: tuple[str, ...] = ()) -> Iterator[Server]:
    control = ("--control", str(folder / "control"))
    with run_server("service:handle", "-w", "1", *control, *options, cwd=folder, prefix=prefix) as server:
        yield server


def say(server: Server, word: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(f"{word}\n".encode())
        with suppress(ConnectionResetError):
            sock.recv(100)


def deaths(folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "status", "--json", "--control", str(folder / "control")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    found: dict[str, int] = json.loads(done.stdout)["deaths"]
    return found


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("exit 0", "exit", "exit status 0"),
        slow("exit 7", "exit", "exit status 7"),
        slow("sys.exit", "exit", "exit status 9"),
        slow("segfault", "signal", r"signal 11 \(SIGSEGV\)"),
        ("abort", "core", r"signal 6 \(SIGABRT\), core dumped"),
        slow("processor", "signal", r"signal 24 \(SIGXCPU\)"),
        ("hang", "hang", r"signal 9 \(killed by --hang-timeout\)"),
    ],
)
def test_a_worker_that_ends_itself_has_its_exit_code_as_cause(folder: Path, word: str, kind: str, text: str) -> None:
    if word == "abort" and not _cores(folder):
        kind, text = "signal", r"signal 6 \(SIGABRT\)"
    with serving(folder, "--hang-timeout", "0.5") as server:
        say(server, word)
        wait_until(lambda: re.search(f"worker 0 \\(pid \\d+\\) died: {text}", server.stderr()), what=server.stderr())
        assert deaths(folder) == {kind: 1}
        wait_until(lambda: len(server.worker_pids()) == 1)
        done = subprocess.run(
            [sys.executable, "-m", "prefork", "status", "--control", str(folder / "control")],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert f"deaths of workers: 1 {kind}" in done.stdout
        assert server.stop() == 0


def _cores(folder: Path) -> bool:
    """Whether a process of this machine can leave a core: where it goes may be no file at all."""
    limit = "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))"
    code = f"import os, resource; os.chdir({str(folder)!r}); {limit}; os.abort()"
    done = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
    return os.WCOREDUMP(os.waitpid(done, 0)[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGVTALRM])
def test_a_worker_that_is_killed_has_the_signal_as_cause(folder: Path, number: int) -> None:
    with serving(folder) as server:
        (before,) = server.worker_pids()
        os.kill(before, number)
        if number == signal.SIGTERM:
            # It drains, and ends as if it had been asked to; it is replaced all the same.
            wait_until(lambda: "died: exit status 0" in server.stderr())
            assert deaths(folder) == {"exit": 1}
        else:
            wait_until(lambda: f"died: signal {int(number)} " in server.stderr())
            assert deaths(folder) == {"signal": 1}
        wait_until(lambda: len(server.worker_pids()) == 1 and before not in server.worker_pids())


def test_a_boot_that_fails_or_takes_too_long_has_the_cause_boot(folder: Path) -> None:
    with serving(folder, "--boot-timeout", "0.5") as server:
        (folder / "service.py").write_text("raise RuntimeError")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "reload failed" in server.stderr())
        assert deaths(folder) == {"boot": 1}
        (folder / "service.py").write_text("import time; time.sleep(60)")
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.stderr().count("reload failed") == 2)
        assert deaths(folder) == {"boot": 2}


@pytest.mark.slow
def test_a_retired_worker_that_does_not_end_has_the_cause_overdue(folder: Path) -> None:
    with serving(folder, "--reload-drain-timeout", "0.1") as server:
        say(server, "deaf")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "still there after the drain timeout: killed" in server.stderr(), 30)
        wait_until(lambda: deaths(folder) == {"drain_timeout": 1})
        assert server.stop() == 0


#: Runs a command in a control group with little memory, and removes the group when the test is over.
GROUP = 'mkdir -p "$1" && echo "$2" > "$1/$3" && echo $$ > "$1/cgroup.procs" && shift 3 && exec "$@"'


def test_a_worker_killed_by_the_memory_limit_has_the_cause_memory(folder: Path) -> None:
    need_root()
    root = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not (root / limit).exists():
        root, limit = Path("/sys/fs/cgroup"), "memory.max"
        if "memory" not in (root / "cgroup.subtree_control").read_text().split():
            pytest.skip("no control group with a limit of memory that a test could make")
    group = root / f"prefork-test-{os.getpid()}"
    try:
        with serving(folder, prefix=("sh", "-c", GROUP, "sh", str(group), str(128 << 20), limit)) as server:
            say(server, "memory")
            wait_until(lambda: "died: signal 9 (SIGKILL), out of memory" in server.stderr(), 30)
            assert deaths(folder) == {"memory": 1}
            wait_until(lambda: len(server.worker_pids()) == 1)
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            wait_until(lambda: deaths(folder) == {"memory": 1, "signal": 1}, what="the difference")
            assert server.stop() == 0
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text().split())
        group.rmdir()
