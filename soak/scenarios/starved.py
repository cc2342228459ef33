"""A server with hardly any CPU time: no worker is taken for hung, and deadlines pass late, but pass."""

from __future__ import annotations

import contextlib
import socket
import time

from ..quota import quota
from ..report import Row, Verdict, in_words, zero
from ..scenario import Context
from ..servers import serving

SECONDS = 60.0
WORKERS = 4
PART = 0.05
HANG_TIMEOUT, IDLE = 2.0, 3.0
#: How late a deadline may be: a whole process that waits for its turn.
LATE = 2.0


def run(context: Context) -> list[Row]:
    """Connections that ask, as fast as they are answered, and others that are silent until they are ended."""
    seconds = context.seconds(SECONDS, 10.0)
    options = ("--hang-timeout", str(HANG_TIMEOUT), "--idle-timeout", str(IDLE))
    with serving("soak.services.sharing:handle", *options, workers=WORKERS) as fleet:
        before = set(fleet.wait_ready(WORKERS))
        with quota([fleet.pid, *before], PART):
            late, answered = _use(fleet.port, time.monotonic() + seconds)
        killed = len(before - set(fleet.wait_ready(WORKERS)))
        condemned = fleet.server.stderr().count("hangs: ")
    what = f"W={WORKERS} with {PART:.0%} of a processor, --hang-timeout {HANG_TIMEOUT:g}, for {seconds:.0f} s"
    good = min(late) >= -0.05 and max(late) <= LATE
    return [
        zero(
            "starved",
            f"{what}: healthy workers killed",
            killed,
            WORKERS,
            "workers",
            [f"{condemned} verdicts"],
            not condemned,
        ),
        Row(
            "starved",
            f"{what}: end of silent connections after --idle-timeout {IDLE:g}",
            f"late: {in_words(late)}",
            len(late),
            f"none early, none more than {LATE:g} s late",
            Verdict.GOOD if good else Verdict.BAD,
            details=(f"{answered} requests were answered meanwhile",),
        ),
    ]


def _use(port: int, end: float) -> tuple[list[float], int]:
    late: list[float] = []
    answered = 0
    while time.monotonic() < end:
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(8)]
            for sock in silent:
                sock.sendall(b"who\n")
            heard = []
            for sock in silent:
                sock.recv(100)
                heard.append(time.monotonic())
            with socket.create_connection(("127.0.0.1", port), 30) as lively:
                while time.monotonic() < heard[0] + IDLE - 0.5:
                    lively.sendall(b"work 0.002\n")
                    answered += bool(lively.recv(100))
            for sock, when in zip(silent, heard, strict=True):
                sock.settimeout(30)
                with contextlib.suppress(ConnectionError):
                    sock.recv(100)
                late.append(time.monotonic() - when - IDLE)
    return late, answered
