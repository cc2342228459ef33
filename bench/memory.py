"""The memory of idle connections: thousands are opened, used once each, and left idle.

The result is the growth of the server's resident memory, divided by their number. The kernel's own memory for a
socket is the same for every contestant and is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from . import works
from .accounting import available_memory, descriptors, resident
from .errors import BenchError
from .generator import Failure, Generator
from .results import Memory, Results
from .roster import Contestant
from .rounds import Progress
from .servers import Server, running

#: Descriptors that a process needs besides its connections.
SPARE = 200
#: More than an idle TLS connection was seen to keep, in server and generator together.
DEAREST = 700 * 1024
#: Seconds until a server has closed the connections of its warm-up.
DEADLINE = 10.0


def affordable(wanted: int, descriptor_limit: int, available: int, tls: bool) -> int:
    """Return how many of `wanted` connections the limits allow, with 50 % of the `available` bytes left to others."""
    count = min(wanted, descriptor_limit - SPARE)
    return max(1, min(count, available // 2 // DEAREST) if tls else count)


def refused(contestant: Contestant, tls: bool) -> bool:
    """Return whether it failed a work by TLS, or one in the clear. One that hangs would hang here as well."""
    return any(work.name in contestant.refused and bool(work.tls) == tls for work in works.FULL)


def measure(
    results: Results,
    contestants: Sequence[Contestant],
    generator: Generator,
    build: Path,
    certificate: tuple[str, str] | None,
    core: int,
    wanted: int,
    descriptor_limit: int,
    progress: Progress,
) -> None:
    """Add every contestant's figures to `results`, in the clear and, with a `certificate`, by TLS 1.3."""
    for tls in (False, True) if certificate else (False,):
        count = affordable(wanted, descriptor_limit, available_memory(), tls)
        if count < wanted:
            results.missing.append(f"idle memory{' by TLS' if tls else ''}: {count} connections instead of {wanted}")
        for contestant in contestants:
            if contestant.only or (tls and not contestant.tls):
                continue
            if refused(contestant, tls):
                results.missing.append(f"idle memory{' by TLS' if tls else ''}: {contestant.label} failed such works")
                continue
            progress(f"{count} idle connections{' by TLS' if tls else ''}: {contestant.label}")
            memory = results.memory.setdefault(contestant.name, Memory())
            command = contestant.command(build, "echo", certificate if tls else None)
            try:
                base, each = idle(contestant.name, command, generator, core, count, "1.3" if tls else "")
            except (Failure, BenchError) as exc:
                memory.failure = str(exc)
                continue
            memory.connections = count
            if tls:
                memory.tls = round(each)
            else:
                memory.base, memory.plain = base, round(each)


def idle(
    name: str, command: list[str], generator: Generator, core: int, connections: int, tls: str
) -> tuple[int, float]:
    """Bytes resident at rest, and for each of `connections` idle ones. Raises Failure or BenchError."""
    with running({name: command}, core) as servers:
        server = servers[name]
        at_rest = descriptors(server.pid)
        generator.warm(server, tls)
        _await_closed(server, at_rest)
        base = resident(server.pid)
        with generator.holding(server, connections, tls):
            held = resident(server.pid)
        return base, (held - base) / connections


def _await_closed(server: Server, at_rest: int) -> None:
    # A few more are the loop's own, opened with the first connection.
    end = time.monotonic() + DEADLINE
    while descriptors(server.pid) > at_rest + 8:
        if time.monotonic() > end:
            raise Failure(f"connections of the warm-up were still open after {DEADLINE:g} s")
        time.sleep(0.01)
