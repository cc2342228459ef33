"""What 1,000 clients of `--metrics` that read one byte a second cost the clients of the service itself.

    python -m bench.scrapers        the echo with and without them, in turn

One server serves both. The CPU time is that of the worker for one echo, so it does not depend on what else uses
the machine; the latency does. The report goes to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .accounting import OthersMeter, cpu_seconds
from .build import build
from .errors import BenchError
from .generator import Failure, Generator
from .process_group import kill_group
from .ratios import ratio
from .servers import ROOT, Server, bound_to
from .works import Work

HOST = "127.0.0.1"
ECHO = "async def handle(stream):\n    while data := await stream.read(65536):\n        await stream.send(data)\n"
WORK = Work("echo", "1 KiB echo", 1024, 50)
WARMING = 2000
#: Seconds for the server to start, and from the start of the clients to the first measurement.
DEADLINE = 30.0
SETTLING = 3.0
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
#: Clients that begin at once. More would only fill the kernel's queue.
BURST = 50


@dataclass(frozen=True, slots=True)
class Sampled:
    """One measurement of the echo."""

    cpu_us: float
    """CPU time of the worker for one echo, in microseconds."""
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Parts:
    """The processes of the server."""

    supervisor: int
    worker: int
    exporter: int


def main() -> int:
    """Measure and print. Exit status: 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m bench.scrapers", description="Measure the cost of slow scrapers.")
    parser.add_argument("--rounds", type=int, default=10, help="measurements with and without them (default: 10)")
    parser.add_argument("--requests", type=int, default=30_000, help="of each measurement (default: 30000)")
    parser.add_argument("--scrapers", type=int, default=1000, help="clients of --metrics (default: 1000)")
    parser.add_argument("--read-slowly", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read_slowly:
        read_slowly(options.read_slowly, options.scrapers)
    try:
        with _serving() as (server, port, parts):
            print("\n".join(_compare(server, port, parts, options)))
    except (BenchError, Failure) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    return 0


def _compare(server: Server, port: int, parts: Parts, options: argparse.Namespace) -> list[str]:
    generator = Generator(build(ROOT / "build" / "bench").load, None)
    generator.count(WORK, server, WARMING)
    others = OthersMeter()
    found: dict[bool, list[Sampled]] = {False: [], True: []}
    cost = dict.fromkeys((parts.supervisor, parts.exporter), 0.0)
    seconds = 0.0
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        found[False].append(_sample(generator, server, parts.worker, options.requests))
        with _scrapers(port, options.scrapers):
            before, began = {pid: cpu_seconds(pid) for pid in cost}, time.monotonic()
            found[True].append(_sample(generator, server, parts.worker, options.requests))
            seconds += time.monotonic() - began
            for pid, used in before.items():
                cost[pid] += cpu_seconds(pid) - used
    lines = [f"| | without | with {options.scrapers:,} slow scrapers | ratio |", "|---|---|---|---|"]
    for name, title in (("cpu_us", "CPU of the worker for one echo"), ("p50_us", "latency p50"), ("p99_us", "p99")):
        lines.append(_row(title, *([getattr(each, name) for each in found[which]] for which in (False, True))))
    supervisor, exporter = (cost[pid] / seconds for pid in (parts.supervisor, parts.exporter))
    lines += ["", f"Of one CPU the supervisor used {supervisor:.1%}, the process of --metrics {exporter:.1%}."]
    measured = f"{options.rounds} rounds of {options.requests:,} echoes"
    lines.append(f"{measured}; other processes used {others.share():.1%} of the machine.")
    return lines


def _row(title: str, without: list[float], with_them: list[float]) -> str:
    change = ratio(with_them, without)
    assert change is not None
    medians = f"{statistics.median(without):.1f} us | {statistics.median(with_them):.1f} us"
    return f"| {title} | {medians} | {change.value:.3f} ({change.least:.2f} to {change.most:.2f}) |"


def _sample(generator: Generator, server: Server, worker: int, requests: int) -> Sampled:
    before = cpu_seconds(worker)
    sample = generator.count(WORK, server, requests)
    used = cpu_seconds(worker) - before
    return Sampled(used / (requests + WORK.connections) * 1e6, sample.p50_ns / 1000, sample.p99_ns / 1000)


# --- the server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _serving() -> Iterator[tuple[Server, int, Parts]]:
    """Serve the echo by one worker, and yield it with the port of --metrics. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        (Path(folder) / "service.py").write_text(ECHO)
        log = Path(folder) / "log"
        options = ["--bind", f"{HOST}:0", "--workers", "1", "--metrics", f"{HOST}:0", "--control", "off"]
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefork", "serve", "service:handle", *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                preexec_fn=bound_to(None),
            )
        try:
            said = _await_ready(process, log)
            service, metrics = (int(port) for port in re.findall(r" on [\d.]+:(\d+) \(tcp\)", said))
            yield Server(process.pid, service, log), metrics, _parts(process.pid)
        finally:
            kill_group(process)


def _await_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + DEADLINE
    while "ready: " not in (said := log.read_text()):
        if process.poll() is not None or time.monotonic() > end:
            raise BenchError(f"the server does not serve: {said.strip()}")
        time.sleep(0.02)
    return said


def _parts(supervisor: int) -> Parts:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        pids = [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]
        names = {Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]: pid for pid in pids}
        if {"prefork: worker 0", "prefork: metrics"} <= names.keys():
            return Parts(supervisor, names["prefork: worker 0"], names["prefork: metrics"])
        time.sleep(0.02)
    raise BenchError("the process of --metrics does not start")


# --- the clients ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scrapers(port: int, count: int) -> Iterator[None]:
    """Run the slow clients in a process of their own until the end of the block."""
    command = [sys.executable, "-m", "bench.scrapers", "--read-slowly", str(port), "--scrapers", str(count)]
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=bound_to(None))
    try:
        time.sleep(SETTLING)
        if process.poll() is not None:
            raise BenchError("the scrapers have ended")
        yield
    finally:
        process.kill()
        process.wait()


def read_slowly(port: int, count: int) -> None:
    """Keep `count` clients that ask for the metrics and read a byte a second each. Does not return."""
    # It is not what is measured.
    os.nice(19)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 64), hard))
    clients: dict[socket.socket, bool] = {}
    selector = selectors.DefaultSelector()
    while True:
        for _ in range(min(BURST, count - len(clients))):
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if sock.connect_ex((HOST, port)) in (0, errno.EINPROGRESS):
                clients[sock] = False
                selector.register(sock, selectors.EVENT_WRITE)
        for key, _ in selector.select(0):
            assert isinstance(key.fileobj, socket.socket)
            selector.unregister(key.fileobj)
            with contextlib.suppress(OSError):
                clients[key.fileobj] = key.fileobj.send(REQUEST) > 0
        for sock in [sock for sock, asked in clients.items() if asked and not _read_one(sock)]:
            sock.close()
            del clients[sock]
        time.sleep(1)


def _read_one(sock: socket.socket) -> bool:
    """Read a byte. Return whether the connection goes on."""
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
