"""Running servers for tests: start one, send it commands, and observe it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from helpers.proc import gone, open_files
from helpers.support import wait_until
from prefork.testing import Server, run_server

ECHO = """
async def handle(stream):
    async for line in stream:
        stream.write(line)
"""


@contextlib.contextmanager
def serving(folder: Path, *options: str, workers: int = 2, **more: Any) -> Iterator[Server]:
    """Serve `service:handle` of this directory, with the control socket in it."""
    control = ["--control", str(folder / "control")]
    with run_server("service:handle", "-w", str(workers), *control, *options, cwd=folder, **more) as server:
        yield server


def command(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `prefork WORDS` in this directory, with its control socket unless `env` is given.

    Lines of progress, which only a slow machine prints, are left out.
    """
    path = () if env else ("--control", str(folder / "control"))
    done = subprocess.run(
        [sys.executable, "-m", "prefork", *words, *path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )
    done.stderr = re.sub(r"^\d+/\d+ .*\n", "", done.stderr, flags=re.MULTILINE)
    return done


def status(folder: Path) -> dict[str, Any]:
    """Return the status of the server. It does not run the command, because a process costs 0.2 s of CPU time and many
    tests ask repeatedly."""
    told = answer(asking(folder, {"command": "status"}))
    assert told["ok"], told
    return told


def state(folder: Path) -> str:
    """Return the state of a server that may be starting; "" while it does not answer.

    Its control socket exists a moment before it listens.
    """
    try:
        return str(status(folder)["state"])
    except (FileNotFoundError, ConnectionRefusedError):
        return ""


def ready(folder: Path) -> list[dict[str, Any]]:
    """Return the workers that accept connections."""
    return [worker for worker in status(folder)["workers"] if worker["state"] == "ready"]


def upgrade(folder: Path) -> int:
    """Upgrade the server, and return the PID of the successor."""
    done = command(folder, "upgrade", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout)["pid"])


def asking(folder: Path, request: Mapping[str, Any] | bytes) -> socket.socket:
    """Connect to the control socket, send a request, and return the connection."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Blocking: with a timeout it is refused where the queue is full (connect(2), EAGAIN).
        sock.connect(str(folder / "control"))
    except OSError:
        sock.close()
        raise
    sock.settimeout(30)
    sock.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
    return sock


def answer(sock: socket.socket) -> dict[str, Any]:
    """Return the reply to a request, and close the connection."""
    with sock, sock.makefile("rb") as file:
        value: dict[str, Any] = json.loads(file.readline())
    return value


class Asked:
    """A request to the control socket, in a thread of its own."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self._sock = asking(folder, request)
        self._reply: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        self._reply = answer(self._sock)

    def reply(self) -> dict[str, Any]:
        """Wait for the reply, and return it."""
        self._thread.join()
        return self._reply


def echo(address: tuple[str, int] | str, line: bytes = b"hello\n") -> bytes:
    """Send a line, and return the line that comes back."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(10)
        sock.connect(address)
        sock.sendall(line)
        return sock.makefile("rb").readline()


def serves(server: Server) -> bool:
    """Return whether the server answers on its first TCP address."""
    return echo(("127.0.0.1", server.port)) == b"hello\n"


def end(pid: int) -> None:
    """Stop a supervisor that is no child of this process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 20, f"the end of {pid}")


def exhaust_supervisor(server: Server, folder: Path, stack: contextlib.ExitStack) -> None:
    """Leave the supervisor no descriptor for a few seconds: idle clients, which `stack` closes, have the last ones."""
    used = open_files(server.pid)
    limit = max(used) + 1
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, hard))
    for _ in range(limit - len(used)):
        stack.enter_context(asking(folder, b""))
    wait_until(lambda: len(open_files(server.pid)) == limit)


def leave_descriptors(pid: int, spare: int) -> None:
    """Let a process open `spare` descriptors more, and no further one, counted from those it has while it sleeps."""
    used = _open_at_rest(pid)
    # The kernel uses the lowest free number, so `spare` numbers below the limit must be free.
    limit = spare
    while sum(number not in used for number in range(limit)) < spare or limit in used:
        limit += 1
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


def _open_at_rest(pid: int) -> set[int]:
    """Return the descriptors that a process has while it sleeps, without those open for a moment (the ready pipe)."""
    seen: list[set[int]] = []

    def slept() -> bool:
        before = _sleeps(pid)
        seen.append({int(fd) for fd in os.listdir(f"/proc/{pid}/fd")})
        return before is not None and before == _sleeps(pid)

    wait_until(slept, what=f"that {pid} sleeps")
    return seen[-1]


def _sleeps(pid: int) -> str | None:
    """Return how often a process has gone to sleep if it sleeps now, else None."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return status["voluntary_ctxt_switches"] if status["State"].startswith("S") else None
