"""A crowd of clients that ask for much and read nothing: what it costs in memory, and when it is over."""

from __future__ import annotations

import contextlib
import math
import socket
import time

from .. import proc
from ..prober import probing
from ..report import Row, Verdict, in_words
from ..scenario import Context
from ..servers import Fleet, serving

CLIENTS = 5_000
#: Asked for by each, in pieces of 64 KiB: many times the budget all together.
PIECES = 16
BUDGET = 256 * 2**20
#: Memory outside the budget: 5 % of it, and the bytes of Python's objects for each connection.
ROOM, EACH = 1.05, 8192
WRITE_TIMEOUT = 5.0


def run(context: Context) -> list[Row]:
    """Connect clients that ask and do not read. One more that does read is still answered."""
    count = context.count(CLIENTS, 200)
    budget = max(2**20, round(BUDGET * context.scale))
    options = ("--max-unsent", str(budget), "--write-timeout", f"{WRITE_TIMEOUT:g}")
    with serving("soak.services.sharing:handle", *options, workers=1) as fleet, contextlib.ExitStack() as stack:
        (worker,) = fleet.wait_ready(1)
        socks = [stack.enter_context(_deaf(fleet)) for _ in range(count)]
        for sock in socks:
            sock.sendall(b"who\n")
        for sock in socks:
            sock.recv(100)
        before = proc.resident(worker)
        for sock in socks:
            sock.sendall(b"flood %d\n" % PIECES)
        asked = time.monotonic()
        with probing(fleet.port) as prober:
            # The peers cannot tell: a reset that comes while their window is closed is not taken (RFC 5961, 3.2).
            most, ended = _until_ended(fleet, worker, asked + WRITE_TIMEOUT + 60)
            answers = prober.stop()
        log = fleet.server.stderr().splitlines()
    grown, room = most - before, budget * ROOM + EACH * count
    verdict = Verdict.GOOD if grown <= room and ended < math.inf else Verdict.BAD
    # A few clients find room for everything in the kernel, and nothing is shown.
    reached = any("--max-unsent" in line for line in log)
    return [
        Row(
            "slow-readers",
            f"{count:,} clients ask for {PIECES * 64} KiB each and read nothing, --max-unsent {budget >> 20}M: growth "
            "of the worker's resident memory",
            f"{grown / 2**20:.1f} MiB",
            count,
            f"<= {room / 2**20:.1f} MiB: {ROOM - 1:.0%} more, and {EACH >> 10} KiB for each",
            verdict if reached else Verdict.BLIND,
            details=(
                f"all of them were ended {ended - asked:.1f} s after they had asked (--write-timeout "
                f"{WRITE_TIMEOUT:g}), in {len(log)} lines of the log; the budget was "
                f"{'' if reached else 'NOT '}reached",
                f"an established connection was answered after {in_words(answers)} meanwhile",
            ),
        ),
    ]


def _deaf(fleet: Fleet) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", fleet.port))
    return sock


def _until_ended(fleet: Fleet, worker: int, deadline: float) -> tuple[int, float]:
    """Return the maximum of memory seen, and when only the client that reads was left."""
    most = 0
    while time.monotonic() < deadline:
        most = max(most, proc.resident(worker))
        if sum(each["open"] for each in fleet.status()["workers"]) <= 1:
            return most, time.monotonic()
        time.sleep(0.02)
    return most, math.inf
