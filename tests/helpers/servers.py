"""Running servers as the tests of several files use them: the commands that talk to one, and what is seen of it from
outside."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from helpers.proc import gone
from helpers.support import wait_until
from prefork.testing import Server, run_server

ECHO = """
async def handle(stream):
    async for line in stream:
        stream.write(line)
"""


@contextlib.contextmanager
def serving(folder: Path, *options: str, workers: int = 2, **more: Any) -> Iterator[Server]:
    """`service:handle` of this folder, with its control socket there."""
    control = ["--control", str(folder / "control")]
    with run_server("service:handle", "-w", str(workers), *control, *options, cwd=folder, **more) as server:
        yield server


def command(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`prefork WORDS` in this folder; to its control socket, unless `env` says where there is one."""
    path = () if env else ("--control", str(folder / "control"))
    return subprocess.run(
        [sys.executable, "-m", "prefork", *words, *path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )


def status(folder: Path) -> dict[str, Any]:
    """What the server says of itself. Not by the command: a process of its own costs 0.2 s of a processor, and many
    tests ask again and again."""
    told = answer(asking(folder, {"command": "status"}))
    assert told["ok"], told
    return told


def ready(folder: Path) -> list[dict[str, Any]]:
    """Those of its workers that accept."""
    return [worker for worker in status(folder)["workers"] if worker["state"] == "ready"]


def upgrade(folder: Path) -> int:
    """Upgrade; the pid of the successor."""
    done = command(folder, "upgrade", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout)["pid"])


def asking(folder: Path, request: Mapping[str, Any] | bytes) -> socket.socket:
    """A conversation with the control socket that has begun."""
    sock = socket.socket(socket.AF_UNIX)
    # Blocking: with a timeout it is refused where the queue is full (connect(2), EAGAIN).
    sock.connect(str(folder / "control"))
    sock.settimeout(30)
    sock.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
    return sock


def answer(sock: socket.socket) -> dict[str, Any]:
    """How it ends."""
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
        """When it is there."""
        self._thread.join()
        return self._reply


def echo(address: tuple[str, int] | str, line: bytes = b"hello\n") -> bytes:
    """What comes back for this line."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.settimeout(10)
        sock.connect(address)
        sock.sendall(line)
        return sock.makefile("rb").readline()


def serves(server: Server) -> bool:
    """Whether it answers on its first TCP address."""
    return echo(("127.0.0.1", server.port)) == b"hello\n"


def end(pid: int) -> None:
    """A supervisor that is not ours to wait for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 20, f"the end of {pid}")


def leave_descriptors(pid: int, spare: int) -> None:
    """Let the process open so many more, and not one beyond, counted from what it has when it has nothing to do."""
    used = _open_at_rest(pid)
    # The lowest free number is taken: so many of those below the limit are to be free.
    limit = spare
    while sum(number not in used for number in range(limit)) < spare or limit in used:
        limit += 1
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


def _open_at_rest(pid: int) -> set[int]:
    """What it has open while it sleeps: what is open for a moment (the ready pipe, at the start) does not count."""
    seen: list[set[int]] = []

    def slept() -> bool:
        before = _sleeps(pid)
        seen.append({int(fd) for fd in os.listdir(f"/proc/{pid}/fd")})
        return before is not None and before == _sleeps(pid)

    wait_until(slept, what=f"that {pid} sleeps")
    return seen[-1]


def _sleeps(pid: int) -> str | None:
    """How often it has gone to sleep, if it sleeps now."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return status["voluntary_ctxt_switches"] if status["State"].startswith("S") else None
