"""`prefork serve` as its users run it: how long it takes to start, and what supervisor and worker weigh."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .accounting import proportional, resident
from .errors import BenchError
from .generator import Generator
from .process_group import end_group
from .results import Command
from .servers import ROOT, Server, bound_to

DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """A `prefork serve` that is ready."""

    supervisor: int
    workers: tuple[int, ...]
    port: int
    seconds: float
    """From just before its start to its READY."""


@contextlib.contextmanager
def serving(target: str, *options: str, core: int | None = None) -> Iterator[Running]:
    """Run an example of the project on a free port; every process of it has ended at the end of the block.

    Raises BenchError, with what it logged, if it is not ready in time.
    """
    with tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
        ready, told = os.pipe()
        stack.callback(os.close, ready)
        command = [sys.executable, "-m", "prefork", "serve", target, "--bind", "127.0.0.1:0", *options]
        command += ["--control", "off", "--ready-fd", str(told)]
        began = time.monotonic()
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT / "examples",
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(told,),
                start_new_session=True,
                preexec_fn=bound_to(core),
            )
        finally:
            os.close(told)
        stack.callback(end_group, process)
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if not poll.poll(DEADLINE * 1000) or os.read(ready, 16) != b"READY\n":
            log.seek(0)
            raise BenchError(f"prefork serve {target} is not ready:\n{log.read().decode(errors='replace')}")
        seconds = time.monotonic() - began
        log.seek(0)
        yield Running(process.pid, _children(process.pid), _port(log.read().decode()), seconds)


def _port(log: str) -> int:
    found = re.search(r"listening on 127\.0\.0\.1:(\d+)", log)
    if found is None:
        raise BenchError(f"prefork does not say where it listens:\n{log}")
    return int(found[1])


def _children(pid: int) -> tuple[int, ...]:
    return tuple(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def start(command: Command, loop: str) -> None:
    """One start more, with 2 workers, on any core."""
    with serving("echo:handle", "--workers", "2", "--loop", loop) as running:
        command.start_seconds.append(round(running.seconds, 4))


def weigh(command: Command, loop: str, generator: Generator) -> None:
    """Supervisor and worker, after the worker has served and closed some hundred connections."""
    with serving("echo:handle", "--workers", "1", "--loop", loop) as running:
        (worker,) = running.workers
        generator.warm(Server(worker, running.port, Path(os.devnull)), "")
        for name, pid in (("supervisor", running.supervisor), ("worker", worker)):
            command.resident[name] = resident(pid)
            command.proportional[name] = proportional(pid)
