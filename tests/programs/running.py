"""Starting a program of the catalogue by itself, on a free port, in a session that does not outlive the block.

What is asserted about it is in the tests.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.proc import open_files
from helpers.support import free_port, kill_session

from programs.catalogue import PROGRAMS, SERVERS, Program

#: Seconds for a server to listen, also when all cores are busy.
START = 60.0
#: How often a port that another process took meanwhile is replaced by another one.
PORTS = 5

#: aioftp's client leaves a transfer's socket open where the transfer fails, and Python warns of it.
forgiving = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
#: Those that need no package, one on a loop and one in threads: `make test` runs them, and `make test-programs` all.
QUICK = ("asyncio", "socketserver")


def each_of(programs: Iterable[Program]) -> pytest.MarkDecorator:
    """Parametrize a test by these programs, of which most are slow."""
    marked = [(program, () if program.name in QUICK else pytest.mark.slow) for program in programs]
    return pytest.mark.parametrize(
        "program", [pytest.param(program, id=program.name, marks=marks) for program, marks in marked]
    )


parametrized = each_of(PROGRAMS)


def need_installed(program: Program) -> None:
    """Skip the test if a package of the program is missing; fail it where TEST_PROGRAMS=all says that none may be."""
    if missing := program.missing():
        message = f"{', '.join(missing)} not installed (make test-programs installs everything)"
        if os.environ.get("TEST_PROGRAMS") == "all":
            pytest.fail(message)
        pytest.skip(message)


@dataclass(frozen=True, slots=True)
class Running:
    """A program that listens, and where its output goes."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def said(self) -> str:
        """Return what it wrote to standard output and standard error."""
        return self.log.read_text(errors="replace")


class PortTakenError(Exception):
    """Another process bound the port first."""


@contextlib.contextmanager
def by_itself(program: Program, folder: Path) -> Iterator[Running]:
    """Run the program without prefork within the block. Raises AssertionError, with what it said, if it does not
    listen in time."""
    with contextlib.ExitStack() as stack:
        for _ in range(PORTS):
            with contextlib.suppress(PortTakenError):
                running = stack.enter_context(_started(program, folder))
                break
        else:
            raise AssertionError(f"{PORTS} ports were taken by others")
        yield running


@contextlib.contextmanager
def _started(program: Program, folder: Path) -> Iterator[Running]:
    port, log = free_port(), folder / f"{program.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *program.arguments(port)],
            cwd=SERVERS,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Running(process, port, log)
    try:
        _await_listening(running)
        yield running
    finally:
        kill_session(process.pid)
        process.wait()


def _await_listening(running: Running) -> None:
    end = time.monotonic() + START
    while not _listens(running.process.pid, running.port):
        if running.process.poll() is not None:
            if "in use" in running.said():
                raise PortTakenError
            raise AssertionError(f"exit status {running.process.returncode}; it said:\n{running.said()}")
        if time.monotonic() > end:
            raise AssertionError(f"does not listen after {START:g} s; it said:\n{running.said()}")
        time.sleep(0.02)


def _listens(pid: int, port: int) -> bool:
    """Return whether this process listens on the port. Another test's server may have taken it."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listeners = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    try:
        return not listeners.isdisjoint(open_files(pid).values())
    except FileNotFoundError:
        return False
