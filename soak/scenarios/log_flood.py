"""Bad connections as fast as they come: how many lines the log gets, and what they cost."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from .. import proc
from ..load import ROOT
from ..report import Row, Verdict
from ..scenario import Context
from ..servers import serving

SECONDS = 8.0
ROUNDS = 3
#: At the level of errors it does not say where it listens. No other program is in this namespace.
PORT = 4433
FLOODERS = 2
#: Lines a second and a worker; and the part of the processor time that logging may cost.
MOST_LINES, MOST_COST = 10.0, 0.05
#: A line of a log forged, a colour for a terminal, and the end.
GARBAGE = b"\n2026-01-01 error forged\x1b[31m\r\n" * 8


def run(context: Context) -> list[Row]:
    """Garbage on a TLS port, with the log as it is by default, and with none of these lines, in turn."""
    seconds = context.seconds(SECONDS, 2.0)
    lines, raw = 0.0, 0
    spent: dict[str, float] = {}
    done: dict[str, int] = {}
    for _ in range(context.count(ROUNDS, 1)):
        for level in ("info", "error"):
            with serving(
                "soak.services.bare:service",
                *("--log-level", level),
                workers=1,
                port=PORT,
                certificates=context.certificates(),
            ) as fleet:
                (worker,) = fleet.wait_ready(1)
                before = proc.processor_seconds(worker)
                number = _flood(PORT, seconds)
                spent[level] = spent.get(level, 0.0) + proc.processor_seconds(worker) - before
                done[level] = done.get(level, 0) + number
                log = fleet.server.stderr()
                lines = max(lines, len(log.splitlines()) / seconds)
                raw += sum(not (" " <= letter <= "~" or letter == "\n") for letter in log) + log.count("\n2026-01-01")
    each = {level: spent[level] / max(1, done[level]) for level in spent}
    cost = 1 - each["error"] / each["info"]
    good = lines <= MOST_LINES and not raw and cost <= MOST_COST
    total = sum(done.values())
    return [
        Row(
            "log-flood",
            "garbage instead of TLS handshakes, as fast as it comes: lines of the log a second; what they cost",
            f"{lines:.1f}; {cost:.1%} of the worker's processor time",
            total,
            f"<= {MOST_LINES:g}; <= {MOST_COST:.0%}",
            Verdict.GOOD if good else Verdict.BAD,
            details=(
                f"{total / seconds / 2 / context.count(ROUNDS, 1):.0f} bad connections a second, "
                f"{each['info'] * 1e6:.0f} µs of processor time each; {raw} letters that a terminal would obey",
            ),
        )
    ]


def _flood(port: int, seconds: float) -> int:
    flooders = [
        subprocess.Popen(
            [sys.executable, "-m", "soak.scenarios.log_flood", str(port), str(seconds)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        for _ in range(FLOODERS)
    ]
    return sum(int(flooder.communicate()[0]) for flooder in flooders)


def main(port: str, seconds: str) -> None:
    """Be a flooder; print how many connections there were."""
    end = time.monotonic() + float(seconds)
    number = 0
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", int(port)), 30) as sock:
            sock.sendall(GARBAGE)
            try:
                while sock.recv(1000):
                    pass
            except ConnectionError:
                pass
        number += 1
    sys.stdout.write(str(number))


if __name__ == "__main__":
    main(*sys.argv[1:])
