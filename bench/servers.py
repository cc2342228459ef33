"""Starting and ending the servers: each a process of its own, pinned to the server's core, ended whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import BenchError

ROOT = Path(__file__).parents[1]
#: Seconds from start to the announcement of a port.
DEADLINE = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Server:
    """A server that accepts on 127.0.0.1."""

    pid: int
    port: int
    complaints: Path
    """What it wrote to standard error."""


def bound_to(core: int | None) -> Callable[[], None]:
    """Return a `preexec_fn`: run on that core (None: on any), and die with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if core is not None:
            os.sched_setaffinity(0, {core})

    return prepare


@contextlib.contextmanager
def running(commands: Mapping[str, Sequence[str]], core: int) -> Iterator[dict[str, Server]]:
    """Start a server for each name, all at once; each must print its port. Killed at the end of the block.

    Raises BenchError, with what it said, for a server that does not start.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        started = {}
        for name, command in commands.items():
            log = stack.enter_context(open(folder / f"{name}.log", "wb"))
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=bound_to(core),
            )
            stack.callback(_end, process)
            started[name] = process
        end = time.monotonic() + DEADLINE
        servers = {}
        for name, process in started.items():
            complaints = folder / f"{name}.log"
            servers[name] = Server(process.pid, _port(name, process, complaints, end), complaints)
        yield servers


def _port(name: str, process: subprocess.Popen[bytes], complaints: Path, end: float) -> int:
    assert process.stdout is not None
    line = _line(process.stdout, end)
    if not line.strip().isdigit():
        said = complaints.read_text(errors="replace").strip().splitlines()
        raise BenchError(f"{name} does not serve: {said[-1] if said else 'it said nothing in time'}")
    return int(line)


def _line(pipe: IO[bytes], end: float) -> bytes:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return pipe.readline() if poll.poll(max(0.0, end - time.monotonic()) * 1000) else b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
