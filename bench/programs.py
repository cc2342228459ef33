"""What `prefork run` adds to a server's own single process: CPU time per request, measured beside it in the same run.

    python -m bench.programs        aiohttp and uvicorn, by themselves and in 1 and 2 workers

It needs the environment of `make test-programs`. All processes of a server run on one core and the generator on another
one, so that two workers show their cost and not their speed. The report goes to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .accounting import OthersMeter, cpu_seconds
from .build import build
from .cores import choose, usable
from .errors import BenchError
from .generator import Failure, Generator
from .process_group import end_group, free_port
from .ratios import ratio
from .servers import ROOT, Server, bound_to
from .works import Work

APPS = Path(__file__).parent / "apps"
HOST = "127.0.0.1"
#: Seconds for a server to listen, and for it to end.
DEADLINE = 30.0
#: Milliseconds after which the processes of a server count as asleep, although they are not.
RESTING_MS = 100
#: How often each contestant is measured in a round.
TURNS = 5
#: Requests before the first measurement, so that each worker has loaded what it needs.
WARMING = 2000

WORKS = (
    Work("kept", "GET on 50 kept connections", 64, 50, http=True),
    Work("close", "GET on a connection of its own, 50 at a time", 64, 50, closing=True, http=True),
)
PROGRAMS = {
    "uvicorn": ("-m", "uvicorn", "asgi_app:app", "--host", HOST, "--port", "{port}", "--log-level", "warning"),
    "aiohttp": ("aiohttp_app.py", HOST, "{port}"),
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program in one way of running it."""

    program: str
    workers: int
    """0: by itself, without prefork."""

    @property
    def label(self) -> str:
        """The name in the report."""
        return f"{self.program}, prefork run -w {self.workers}" if self.workers else self.program

    def command(self, port: int) -> list[str]:
        """The command that serves on this port."""
        words = [word.format(port=port) for word in PROGRAMS[self.program]]
        if not self.workers:
            return [sys.executable, *words]
        options = ["--workers", str(self.workers), "--control", "off", "--log-level", "warning"]
        return [sys.executable, "-m", "prefork", "run", *options, "--", *words]


CONTESTANTS = tuple(Contestant(program, workers) for program in PROGRAMS for workers in (0, 1, 2))


@dataclass(frozen=True, slots=True)
class Cost:
    """What one measurement says of one contestant and one work."""

    cpu_us: float
    """CPU time of all its processes for one request, in microseconds."""
    rate: float
    """Requests a second."""


def main() -> int:
    """Measure and print. Exit status: 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m bench.programs", description="Measure the cost of `prefork run`.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant does each work (default: 5)")
    parser.add_argument("--requests", type=int, default=2000, help="of each measurement (default: 2000)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measured, others = _measure(options.rounds, options.requests)
    except (BenchError, Failure) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print("\n".join(render(measured)))
    times = f"{options.rounds} rounds of {TURNS} measurements, each of {options.requests:,} requests"
    print(f"\n{times}; other processes used {others:.1%} of the machine.")
    return 0


Measured = dict[tuple[str, Contestant], list[Cost]]


def render(measured: Measured) -> list[str]:
    """Return the lines of the report: a table for each work, medians, and ratios to the program by itself."""
    lines = []
    for work in WORKS:
        lines += ["", f"### {work.title}", "", "| | CPU per request | of its own process | requests a second |"]
        lines.append("|---|---|---|---|")
        for contestant in CONTESTANTS:
            costs = measured[work.name, contestant]
            own = measured[work.name, Contestant(contestant.program, 0)]
            found = ratio([cost.cpu_us for cost in costs], [cost.cpu_us for cost in own])
            assert found is not None
            cpu_us = statistics.median(cost.cpu_us for cost in costs)
            rate = statistics.median(cost.rate for cost in costs)
            spread = f"{found.value:.2f} ({found.least:.2f} to {found.most:.2f})" if contestant.workers else "1"
            lines.append(f"| {contestant.label} | {cpu_us:.1f} us | {spread} | {rate:,.0f} |")
    return lines[1:]


def _measure(rounds: int, requests: int) -> tuple[Measured, float]:
    cores, others = choose(usable()), OthersMeter()
    generator = Generator(build(ROOT / "build" / "bench").load, cores.generator)
    measured: Measured = {(work.name, each): [] for work in WORKS for each in CONTESTANTS}
    # Each round has servers of its own, so that no process's luck (its addresses, its hash seed) decides.
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        with contextlib.ExitStack() as stack:
            servers = {each: stack.enter_context(_running(each, cores.server)) for each in CONTESTANTS}
            for work in WORKS:
                for server in servers.values():
                    generator.count(work, server, WARMING)
                # In turn, each for a moment, so that all meet the same weather.
                for _ in range(TURNS):
                    for contestant, server in servers.items():
                        measured[work.name, contestant].append(_cost(generator, work, server, requests))
    return measured, others.share()


def _cost(generator: Generator, work: Work, server: Server, requests: int) -> Cost:
    before = _cpu_at_rest(server.pid)
    sample = generator.count(work, server, requests)
    # The generator asks once on each connection that stays open before it begins to count.
    asked = requests if work.closing else requests + work.connections
    return Cost((_cpu_at_rest(server.pid) - before) / asked * 1e6, sample.rate)


def _cpu_at_rest(leader: int) -> float:
    """Return the CPU seconds of a server and its children, read when all of them sleep: only then it is exact."""
    last = -1.0
    for _ in range(RESTING_MS):
        time.sleep(0.001)
        now = sum(cpu_seconds(pid) for pid in (leader, *_children(leader)))
        if now == last:
            break
        last = now
    return last


def _children(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]


@contextlib.contextmanager
def _running(contestant: Contestant, core: int) -> Iterator[Server]:
    """Run a contestant on `core` until the end of the block. Raises BenchError, with what it said, if it does not."""
    with tempfile.NamedTemporaryFile(prefix="bench-") as log:
        port = free_port(HOST)
        process = subprocess.Popen(
            contestant.command(port),
            cwd=APPS,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=bound_to(core),
        )
        try:
            _await_workers(contestant, process, port, log)
            yield Server(process.pid, port, Path(log.name))
        finally:
            end_group(process)


def _await_workers(contestant: Contestant, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while not (_listens(port) and len(_children(process.pid)) >= contestant.workers):
        if process.poll() is not None or time.monotonic() > end:
            said = Path(log.name).read_text(errors="replace").strip().splitlines()
            raise BenchError(f"{contestant.label} does not serve: {said[-1] if said else 'it said nothing'}")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=DEADLINE).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
