"""What `examples/proxy.py` costs beside HAProxy, measured in the same run: CPU time of one proxy process per unit.

    python -m bench.proxies         both loops, and HAProxy with and without splicing

Each proxy has one thread or worker, on the server's core; the backend, an epoll server in C, shares the other core with
the generator and is not counted. The report goes to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from .accounting import OthersMeter
from .build import Programs, build
from .cores import choose, usable
from .errors import BenchError
from .generator import Failure, Generator
from .process_group import end_group, free_port
from .ratios import ratio
from .servers import ROOT, Server, bound_to, running
from .works import KIB, MIB, Work

HOST = "127.0.0.1"
#: Seconds for a proxy to listen, and for it to end.
DEADLINE = 30.0

#: What is measured, and for how many exchanges per scale of 1.
WORKS = (
    (Work("echo", "1 KiB echo on 50 kept connections", KIB, 50), 40_000),
    (Work("close", "connection with a 64 B echo, 20 at a time", 64, 20, closing=True), 6_000),
    (Work("bulk", "1 MiB echo on 4 kept connections", MIB, 4), 400),
)
#: The contestant that the others are compared with.
MEASURE = "HAProxy"
CONTESTANTS = ("examples/proxy.py", "examples/proxy.py on uvloop", MEASURE, "HAProxy with splicing")

HAPROXY = """\
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    {splice}
listen proxy
    bind {host}:{port}
    server backend {host}:{backend}
"""


def main() -> int:
    """Measure and print. Exit status: 0, or 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxies", description="Measure the proxy beside HAProxy.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each does each work (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of exchanges (default: 1)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measured, others = _measure(options.rounds, options.scale)
    except (BenchError, Failure) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    print("\n".join(render(measured)))
    print(f"\n{options.rounds} rounds at scale {options.scale:g}; {_version()}, {sys.version.split()[0]};", end=" ")
    print(f"other processes used {others:.1%} of the machine.")
    return 0


Measured = dict[tuple[str, str], list[float]]
"""CPU microseconds per exchange, of each round, by work and contestant."""


def render(measured: Measured) -> list[str]:
    """Return the lines of the report: a row for each contestant, with medians and ratios to HAProxy."""
    lines = [
        f"| CPU us of the proxy | {' | '.join(work.title for work, _ in WORKS)} |",
        "|---" * (len(WORKS) + 1) + "|",
    ]
    for contestant in CONTESTANTS:
        cells = []
        for work, _ in WORKS:
            costs, base = measured[work.name, contestant], measured[work.name, MEASURE]
            found = ratio(costs, base)
            assert found is not None
            spread = "" if contestant == MEASURE else f" ({found.value:.2f}: {found.least:.2f} to {found.most:.2f})"
            cells.append(f"{statistics.median(costs):,.1f}{spread}")
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return lines


def _measure(rounds: int, scale: float) -> tuple[Measured, float]:
    cores, others = choose(usable()), OthersMeter()
    programs = build(ROOT / "build" / "bench")
    generator = Generator(programs.load, cores.generator)
    measured: Measured = {(work.name, each): [] for work, _ in WORKS for each in CONTESTANTS}
    # Each round has processes of its own, so that no process's luck (its addresses, its hash seed) decides.
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        with _backend(programs, cores.generator) as backend, contextlib.ExitStack() as stack:
            proxies = {each: stack.enter_context(_running(each, backend, cores.server)) for each in CONTESTANTS}
            for proxy in proxies.values():
                generator.warm(proxy, "")
            for work, exchanges in WORKS:
                count = max(work.connections, round(exchanges * scale))
                # In turn, the other way round in every second round.
                for contestant, proxy in list(proxies.items())[:: -1 if number % 2 else 1]:
                    measured[work.name, contestant].append(generator.count(work, proxy, count).cpu_us)
    return measured, others.share()


@contextlib.contextmanager
def _backend(programs: Programs, core: int) -> Iterator[int]:
    with running({"backend": [str(programs.folder / "epoll")]}, core) as servers:
        yield servers["backend"].port


@contextlib.contextmanager
def _running(contestant: str, backend: int, core: int) -> Iterator[Server]:
    """Run a proxy on `core` until the end of the block. Raises BenchError, with what it said, if it does not start."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, open(Path(folder) / "log", "wb") as log:
        port = free_port(HOST)
        command = _command(contestant, port, backend, Path(folder))
        process = subprocess.Popen(
            command,
            cwd=ROOT / "examples",
            env={**os.environ, "BACKENDS": f"{HOST}:{backend}"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=bound_to(core),
        )
        try:
            _await_listening(contestant, process, port, log)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            # The worker of prefork; HAProxy serves in its only process.
            yield Server(int(children[0]) if children else process.pid, port, Path(log.name))
        finally:
            end_group(process)


def _command(contestant: str, port: int, backend: int, folder: Path) -> Sequence[str]:
    if not contestant.startswith("HAProxy"):
        loop = "uvloop" if contestant.endswith("uvloop") else "asyncio"
        options = ["--workers", "1", "--control", "off", "--log-level", "warning", "--loop", loop]
        return [sys.executable, "-m", "prefork", "serve", "proxy:handle", "--bind", f"{HOST}:{port}", *options]
    program = _haproxy()
    splice = "option splice-auto" if contestant.endswith("splicing") else "no option splice-auto"
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(splice=splice, host=HOST, port=port, backend=backend))
    return [program, "-db", "-f", str(config)]


def _haproxy() -> str:
    found = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise BenchError("haproxy is not installed (Debian: haproxy)")
    return found


def _version() -> str:
    said = subprocess.run([_haproxy(), "-v"], capture_output=True, text=True, timeout=10).stdout
    return " ".join(said.split()[:3])


def _await_listening(contestant: str, process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > end:
            said = Path(log.name).read_text(errors="replace").strip().splitlines()
            raise BenchError(f"{contestant} does not serve: {said[-1] if said else 'it said nothing'}")
        time.sleep(0.02)


def _listens(port: int) -> bool:
    """Return whether a connection through the proxy is echoed: then its worker is ready, and knows the backend."""
    try:
        with socket.create_connection((HOST, port), timeout=DEADLINE) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b"x"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
