"""Running the load generator (`load/`) for one work against one server, and what it reports."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .servers import Server, bound_to
from .works import Work

#: Exchanges that a server does before it is measured, each on a connection of its own. The first closed connections
#: teach the allocator that blocks of a loop's size come back; before that each read maps and unmaps memory.
WARMING = 300
#: Seconds without an event after which the generator gives up.
PATIENCE = 20.0
#: Seconds for a run beyond the time it was given.
GRACE = 60.0


class Failure(Exception):
    """The server did not do the work; the text says what happened."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured of one server, one work, once. Nanoseconds, and counts within the measured time."""

    requests: int
    seconds: float
    cpu_ns: int
    """The server's, exact: read when it slept, before the first message and after the last answer."""
    user_ns: int
    """As the kernel samples it; `user_ns` and `system_ns` tell how `cpu_ns` divides."""
    system_ns: int
    generator_cpu_ns: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    most_ns: int
    handshakes: int
    resumed: int

    @property
    def cpu_us(self) -> float:
        """The server's CPU time for one exchange, in microseconds."""
        return self.cpu_ns / self.requests / 1000

    @property
    def rate(self) -> float:
        """The number of exchanges a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Generator:
    """The program, and the core it runs on (None: any)."""

    program: Path
    core: int | None

    def measure(self, work: Work, server: Server, warm_up: float, seconds: float) -> Sample:
        """Warm up and measure. Raises Failure if anything but right answers came."""
        timing = ["--warm-up", str(warm_up), "--seconds", str(seconds)]
        return self.run(server, [*_options(work), *timing], warm_up + seconds)

    def count(self, work: Work, server: Server, requests: int, patience: float = PATIENCE) -> Sample:
        """Do exactly `requests` exchanges. Raises Failure, also if nothing happens for `patience` seconds."""
        return self.run(server, [*_options(work), "--requests", str(requests), "--patience", str(patience)], 0)

    def warm(self, server: Server, tls: str) -> None:
        """Open connections, use and close them. Raises Failure."""
        # A line, which handlers of lines and of bytes echo alike.
        self.count(Work("warm", "", 64, 50, lines=1, closing=True, tls=tls), server, WARMING)

    def run(self, server: Server, options: list[str], seconds: float) -> Sample:
        """Call the program with `options`. Raises Failure with what it says."""
        try:
            done = subprocess.run(
                self._command(server, options),
                capture_output=True,
                text=True,
                timeout=seconds + GRACE,
                preexec_fn=bound_to(self.core),
            )
        except subprocess.TimeoutExpired:
            raise Failure("the generator did not end in time") from None
        if done.returncode:
            raise Failure(done.stderr.strip().removeprefix("load: ") or f"exit status {done.returncode}")
        sample = Sample(**json.loads(done.stdout))
        if not sample.requests:
            raise Failure("not one exchange was completed in the measured time")
        return sample

    @contextlib.contextmanager
    def holding(
        self, server: Server, connections: int, tls: str, patience: float = GRACE
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Keep `connections` open and idle within the block; each was used once before. Raises Failure.

        The process that is yielded writes a line, `left`, when the server has closed all of them.
        """
        options = ["--work", "hold", "--connections", str(connections), *(["--tls", tls] if tls else [])]
        process = subprocess.Popen(
            self._command(server, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=bound_to(self.core),
        )
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdin is not None
            try:
                poll = select.poll()
                poll.register(process.stdout, select.POLLIN)
                if not poll.poll(patience * 1000):
                    raise Failure("connections did not open in time")
                if not process.stdout.readline().startswith(b"holding"):
                    raise Failure(process.stderr.read().decode().strip().removeprefix("load: "))
                yield process
                process.stdin.close()
                process.wait(GRACE)
            finally:
                process.kill()

    def about(self) -> str:
        """What it was built with."""
        return subprocess.run([self.program, "--about"], capture_output=True, text=True, timeout=10).stdout.strip()

    def _command(self, server: Server, options: list[str]) -> list[str]:
        return [str(self.program), "--port", str(server.port), "--pid", str(server.pid), *options]


def _options(work: Work) -> list[str]:
    kind = "reset" if work.reset else "close" if work.closing else "echo"
    options = ["--work", kind, "--size", str(work.size)]
    options += ["--connections", str(work.connections), "--lines", str(work.lines)]
    if work.tls:
        options += ["--tls", work.tls]
    if work.http:
        options += ["--http"]
    return options + (["--resume"] if work.resume else [])
