"""`redis-benchmark` against `examples/kv.py` on prefork, beside redis-server: a real client, a real protocol."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

from .accounting import cpu_seconds
from .commands import serving
from .errors import BenchError
from .results import Results, Series
from .rounds import Progress
from .servers import bound_to

DEADLINE = 60.0
#: Commands that are sent at a time on each of 50 connections.
PIPELINES = (1, 16)


def why_not() -> str:
    """What is missing; "" if everything is here."""
    if shutil.which("redis-benchmark") is None:
        return "redis-benchmark is not installed (Debian: redis-tools)"
    return "" if _server_program() else "redis-server is not installed (Debian: redis-server)"


def _server_program() -> str | None:
    # Debian's redis-check-rdb, of redis-tools, is the server's own program, which looks at the name it is called by.
    # So no package that starts a daemon need be installed.
    return shutil.which("redis-server") or shutil.which("redis-check-rdb")


def measure(
    results: Results, rounds: int, requests: int, server_core: int, client_core: int, progress: Progress
) -> None:
    """Add `rounds` rounds of SET and GET, `requests` each. Raises BenchError if a server does not start."""
    with contextlib.ExitStack() as stack:
        contestants: dict[str, tuple[int, int]] = {}
        for loop in ("asyncio", "uvloop"):
            name = "examples/kv.py on prefork" + (" and uvloop" if loop == "uvloop" else "")
            running = stack.enter_context(serving("kv:handle", "--workers", "1", "--loop", loop, core=server_core))
            contestants[name] = (running.workers[0], running.port)
        contestants["redis-server"] = stack.enter_context(_redis_server(server_core))
        for number in range(-1, rounds):
            progress(f"redis-benchmark, round {number + 1} of {rounds}")
            for name, (pid, port) in contestants.items():
                for pipeline in PIPELINES:
                    found = _once(pid, port, pipeline, requests if number >= 0 else requests // 10, client_core)
                    # The first is the warm-up.
                    if number >= 0:
                        _note(results, name, pipeline, found)


def _note(results: Results, name: str, pipeline: int, found: dict[str, tuple[float, float]]) -> None:
    for command, (rate, cpu_us) in found.items():
        title = command + (f", {pipeline} at a time" if pipeline > 1 else "")
        series = results.redis.setdefault(title, {}).setdefault(name, Series())
        series.rate.append(rate)
        series.cpu_us.append(float(f"{cpu_us:.5g}"))


def _once(pid: int, port: int, pipeline: int, requests: int, core: int) -> dict[str, tuple[float, float]]:
    """For each command: requests a second, and microseconds of the server's CPU time for one."""
    found = {}
    for command in ("set", "get"):
        before = cpu_seconds(pid)
        options = ["-p", str(port), "-t", command, "-n", str(requests), "-c", "50", "-P", str(pipeline), "--csv"]
        # A key of ten thousand, and a value of 64 bytes.
        options += ["-r", "10000", "-d", "64"]
        done = subprocess.run(
            ["redis-benchmark", *options],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            preexec_fn=bound_to(core),
        )
        rates = _rates(done.stdout.splitlines())
        if done.returncode or command.upper() not in rates:
            raise BenchError(f"redis-benchmark {' '.join(options)} failed: {done.stderr.strip()}")
        found[command.upper()] = (rates[command.upper()], (cpu_seconds(pid) - before) * 1e6 / requests)
    return found


def _rates(lines: Sequence[str]) -> dict[str, float]:
    return {row["test"]: float(row["rps"]) for row in csv.DictReader(lines)}


@contextlib.contextmanager
def _redis_server(core: int) -> Iterator[tuple[int, int]]:
    """Run Redis within the block; yield its PID and port."""
    program = _server_program()
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        command, executable=program, stdout=subprocess.DEVNULL, cwd=os.sep, preexec_fn=bound_to(core)
    )
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise BenchError("redis-server does not start") from None
                time.sleep(0.02)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()
