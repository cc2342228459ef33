"""What idle connections cost a whole server, and what it can still do with all of them open.

    python -m bench.capacity --connections 100000       in the clear and by TLS

Opens them in steps, so that memory has a slope. Then it measures the CPU time at rest, how long the commands take, a
reload, and two drains: of a service that leaves when it is told, and of one that stays until it is aborted. The report
goes to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .accounting import OthersMeter, available_memory, cpu_seconds, descriptors, proportional
from .build import build
from .certificates import write_certificate
from .errors import BenchError
from .generator import Failure, Generator
from .process_group import kill_group
from .servers import ROOT, Server, bound_to

HOST = "127.0.0.1"
SERVICE = '''\
"""Both idle until their peer speaks; one leaves when the worker drains, the other stays until it is aborted."""


async def stay(stream):
    while data := await stream.read(65536):
        await stream.send(data)


class Leaving:
    def __init__(self):
        self.streams = set()

    async def start(self):
        pass

    async def handle(self, stream):
        self.streams.add(stream)
        try:
            await stay(stream)
        finally:
            self.streams.discard(stream)

    async def stop(self):
        pass

    def drain(self):
        for stream in list(self.streams):
            stream.close()


leave = Leaving()
'''
#: Seconds for the server to start, and for each of what is measured; and for a step of connections to open.
DEADLINE = 60.0
OPENING = 600.0
#: Seconds for the last client to see the end of its connection.
DRAINING = 180.0
#: Seconds from the last connection to the first measurement.
SETTLING = 2.0
#: Seconds of --drain-timeout: of the service that stays, and of the one that leaves, which needs less.
DRAIN_TIMEOUT, LEAVING = 5, 120
#: Descriptors that a process needs besides its connections.
SPARE = 500
STEPS = (0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, of all workers together and of the kernel."""

    workers: int
    """PSS."""
    sockets: int
    """Buffers of TCP, as /proc/net/sockstat counts them: both ends."""
    slab: int
    """What the kernel cannot reclaim of its slabs: sockets, files, epoll entries of both ends."""


@dataclass(slots=True)
class Measured:
    """What was found with one kind of connection."""

    title: str
    memory: list[tuple[int, Memory]] = field(default_factory=list)
    """By the number of connections, beginning with 0."""
    rows: list[tuple[str, str]] = field(default_factory=list)
    """What else was measured, as text."""

    def add(self, what: str, found: str) -> None:
        """Note a row, and show it at once, because the whole takes minutes."""
        self.rows.append((what, found))
        _progress(f"{what}: {found}")

    def slope(self, of: Callable[[Memory], int]) -> float:
        """Return the bytes of each connection, between the first step and the last."""
        (low, first), (high, last) = self.memory[1], self.memory[-1]
        return (of(last) - of(first)) / (high - low)


def main() -> int:
    """Measure and print. Exit status: 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m bench.capacity", description="Hold idle connections.")
    parser.add_argument("--connections", type=int, default=100_000, help="at the last step (default: 100000)")
    parser.add_argument("--rest", type=float, default=30.0, metavar="SECONDS", help="CPU time at rest (default: 30)")
    parser.add_argument("--kind", action="append", choices=("plain", "tls"), help="only this (default: both)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    processes = math.ceil(options.connections / (limit - SPARE))
    others = OthersMeter()
    try:
        for kind in options.kind or ("plain", "tls"):
            print("\n".join(render(_measure(kind == "tls", options.connections, processes, options.rest))), flush=True)
    except (BenchError, Failure) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print(
        f"\n{processes} workers, because a process has {limit:,} descriptors here; {sys.version.split()[0]};", end=" "
    )
    print(f"other processes used {others.share():.1%} of the machine.")
    return 0


def render(measured: Measured) -> list[str]:
    """Return the lines of the report."""
    _, empty = measured.memory[0]
    lines = [f"### {measured.title}", "", "| connections | workers, each | TCP buffers | slab | workers together |"]
    lines.append("|---|---|---|---|---|")
    for count, memory in measured.memory[1:]:
        each = [
            (getattr(memory, name) - getattr(empty, name)) / count / ends
            for name, ends in (("workers", 1), ("sockets", 2), ("slab", 2))
        ]
        lines.append(
            f"| {count:,} | {' | '.join(f'{size:,.0f} B' for size in each)} | {memory.workers / 2**20:,.0f} MiB |"
        )
    slope = measured.slope(lambda memory: memory.workers)
    kernel = measured.slope(lambda memory: memory.slab + memory.sockets) / 2
    lines.append(
        f"| slope | {slope:,.0f} B | kernel: {kernel:,.0f} B | | 1,000,000 would take ",
    )
    lines[-1] += f"{(slope + kernel) * 1e6 / 2**30:,.1f} GiB |"
    lines += ["", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in measured.rows)]
    return [*lines, ""]


# --- measuring --------------------------------------------------------------------------------------------------------


def _measure(tls: bool, connections: int, processes: int, rest: float) -> Measured:
    measured = Measured("TLS 1.3" if tls else "In the clear")
    with _serving("leave", tls, connections, processes) as running, contextlib.ExitStack() as held:
        holders = _fill(running, measured, tls, connections, processes, held)
        _rest(running, measured, rest)
        _check(holders)
        _ask(running, measured)
        _reload(running, measured)
        _check(holders)
        _drain(running, measured, holders, "drain, the service leaves")
    if tls:
        # Aborting says nothing to the peer, so it costs what it costs in the clear.
        return measured
    with _serving("stay", tls, connections, processes) as running, contextlib.ExitStack() as held:
        holders = _fill(running, None, tls, connections, processes, held)
        _drain(running, measured, holders, f"drain, the service stays (--drain-timeout {DRAIN_TIMEOUT})")
    return measured


def _fill(
    running: Running,
    measured: Measured | None,
    tls: bool,
    connections: int,
    processes: int,
    held: contextlib.ExitStack,
) -> list[subprocess.Popen[bytes]]:
    """Open the connections, in steps if memory is to be `measured`. Return the processes that hold them."""
    generator = Generator(build(ROOT / "build" / "bench").load, None)
    server = running.server()
    # The first closed connections teach the allocator.
    generator.warm(server, "1.3" if tls else "")
    time.sleep(SETTLING)
    if measured is not None:
        measured.memory.append((0, running.memory()))
    holders, opened, began = [], 0, time.monotonic()
    for step in STEPS if measured is not None else STEPS[-1:]:
        target = round(connections * step)
        while opened < target:
            count = min(target - opened, math.ceil(connections / processes))
            _progress(f"{opened:,} connections, opening {count:,}")
            holders.append(held.enter_context(generator.holding(server, count, "1.3" if tls else "", OPENING)))
            opened += count
        if measured is not None:
            time.sleep(SETTLING)
            _check(holders)
            measured.memory.append((opened, running.memory()))
            _progress(f"{opened:,} connections: {measured.memory[-1][1]}")
    if measured is not None:
        measured.add("all opened, steps and waits included", f"{time.monotonic() - began:.0f} s")
    return holders


def _rest(running: Running, measured: Measured, seconds: float) -> None:
    _progress(f"at rest for {seconds:g} s")
    pids = {"supervisor": [running.process.pid], "workers together": running.workers()}
    before = {pid: cpu_seconds(pid) for group in pids.values() for pid in group}
    time.sleep(seconds)
    for name, group in pids.items():
        used = sum(cpu_seconds(pid) - before[pid] for pid in group) / seconds
        measured.add(f"CPU at rest, {name}", f"{used:.2%} of one CPU")
    count = max(descriptors(pid) for pid in running.workers())
    measured.add("descriptors of the worker with the most", f"{count:,}")


def _ask(running: Running, measured: Measured) -> None:
    for words in (["status"], ["connections"], ["connections", "--limit", "0", "--json"], ["top", "--once"]):
        _progress(f"prefork {' '.join(words)}")
        began, used = time.monotonic(), _children_cpu()
        said = running.command(*words)
        seconds, cpu = time.monotonic() - began, _children_cpu() - used
        lines = f", {said.count(chr(10)):,} lines" if said.count("\n") > 1 else f", {len(said) / 2**20:.1f} MiB"
        measured.add(f"`prefork {' '.join(words)}`", f"{seconds:.1f} s, of which CPU {cpu:.1f} s{lines}")


def _children_cpu() -> float:
    """Return the CPU seconds of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reload(running: Running, measured: Measured) -> None:
    """Reload with all connections open: the old workers keep them."""
    _progress("reload")
    old, began = set(running.workers()), time.monotonic()
    os.kill(running.process.pid, signal.SIGHUP)
    _await(lambda: "reloaded: every worker is of generation 1" in running.log(), "the reload", running)
    seconds = time.monotonic() - began
    kept = len(old & set(running.workers()))
    measured.add("reload, until the new workers serve", f"{seconds:.1f} s; {kept} old workers keep theirs")


def _drain(running: Running, measured: Measured, holders: Sequence[subprocess.Popen[bytes]], title: str) -> None:
    _progress(title)
    began, before = time.monotonic(), _children_cpu()
    used = sum(cpu_seconds(pid) for pid in (running.process.pid, *running.workers()))
    running.process.terminate()
    for holder in holders:
        _await_left(holder)
    left = time.monotonic() - began
    status = running.process.wait(DRAINING)
    seconds, cpu = time.monotonic() - began, _children_cpu() - before - used
    log = running.log()
    alarms = len(re.findall(r"(?i)\b(?:hang|hung|killed|did not)\b", log))
    told = f"all clients closed after {left:.1f} s, exit {status} after {seconds:.1f} s, of which CPU {cpu:.1f} s"
    measured.add(title, told + (f", {alarms} lines of trouble in the log" if alarms else ""))
    if alarms:
        print(log, file=sys.stderr)


def _await_left(holder: subprocess.Popen[bytes]) -> None:
    assert holder.stdout is not None
    poll = select.poll()
    poll.register(holder.stdout, select.POLLIN)
    if not poll.poll(DRAINING * 1000) or not os.read(holder.stdout.fileno(), 100).startswith(b"left"):
        raise Failure("connections stayed open after the drain")


def _check(holders: Sequence[subprocess.Popen[bytes]]) -> None:
    """Raise Failure, with what it said, if a holder has ended: its connections ended with it."""
    for holder in holders:
        if holder.poll() is not None:
            assert holder.stderr is not None
            raise Failure(f"a holder ended with {holder.returncode}: {holder.stderr.read().decode()}")


def _progress(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


# --- the server -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A `prefork serve` that accepts."""

    process: subprocess.Popen[bytes]
    folder: Path

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def server(self) -> Server:
        found = re.search(rf"listening on {HOST}:(\d+)", self.log())
        assert found is not None
        return Server(self.process.pid, int(found[1]), self.folder / "log")

    def workers(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def memory(self) -> Memory:
        sockets = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.M)
        slab = re.search(r"^SUnreclaim:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
        assert sockets is not None
        assert slab is not None
        workers = sum(proportional(pid) for pid in self.workers())
        return Memory(workers, int(sockets[1]) * resource.getpagesize(), int(slab[1]) * 1024)

    def command(self, *words: str) -> str:
        control = ["--control", str(self.folder / "control")]
        done = subprocess.run(
            [sys.executable, "-m", "prefork", *words, *control], capture_output=True, text=True, timeout=DEADLINE * 2
        )
        if done.returncode:
            raise Failure(f"prefork {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout


@contextlib.contextmanager
def _serving(target: str, tls: bool, connections: int, workers: int) -> Iterator[Running]:
    """Run the service with that many workers. Raises BenchError if it does not start, or if memory is short."""
    if available_memory() < connections * (100 if tls else 20) * 1024:
        raise BenchError("there is not memory enough for this number of connections and their clients")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "service.py").write_text(SERVICE)
        options = ["--bind", f"{HOST}:0", "--workers", str(workers), "--control", str(folder / "control")]
        options += ["--drain-timeout", str(DRAIN_TIMEOUT if target == "stay" else LEAVING), "--backlog", "4096"]
        if tls:
            certificate, key = write_certificate(folder)
            options += ["--tls-cert", certificate, "--tls-key", key]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefork", "serve", f"service:{target}", *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=bound_to(None),
            )
        running = Running(process, folder)
        try:
            _await(lambda: "ready: " in running.log(), "the start", running)
            yield running
        finally:
            kill_group(process)


def _await(condition: Callable[[], bool], what: str, running: Running) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        if running.process.poll() is not None or time.monotonic() > end:
            raise BenchError(f"waited in vain for {what}: {running.log().strip()}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
