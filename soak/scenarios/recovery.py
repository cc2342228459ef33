"""From the kill of a worker to its replacement accepting, where no back-off and no budget of forks is due.

Measured from the outside: all other workers are stopped and a client waits in the queue, so only the replacement
can answer it. The time runs from before the SIGKILL to the arrival of the answer.
"""

from __future__ import annotations

import socket
import time

from .. import proc
from ..errors import HarnessError
from ..report import Row, Verdict, in_words, percentiles
from ..scenario import Context
from ..servers import Fleet, serving

WORKERS = 16
KILLS = 300
#: Deaths of a slot in a row that are answered at once (`core/restart_policy.py`); then another server is started.
KILLS_PER_SLOT = 3
#: Seconds, for the 99th percentile.
TARGET = 0.050


def run(context: Context) -> list[Row]:
    """Kill each worker of a server in turn."""
    kills = context.count(KILLS, WORKERS)
    answers: list[float] = []
    starts: list[float] = []
    while len(answers) < kills:
        with serving("soak.services.bare:service", workers=WORKERS) as fleet:
            for number in range(min(kills - len(answers), WORKERS * KILLS_PER_SLOT)):
                start, answer = _one_kill(fleet, number % WORKERS)
                starts.append(start)
                answers.append(answer)
        context.say(f"recovery: {len(answers)} kills, {in_words(answers)}")
    good = percentiles(answers)["p99"] <= TARGET
    return [
        Row(
            "recovery",
            f"SIGKILL to the replacement's first answer, W={WORKERS}, a service that imports nothing",
            in_words(answers),
            len(answers),
            f"p99 <= {TARGET * 1000:.0f} ms",
            Verdict.GOOD if good else Verdict.BAD,
            details=(f"of that, up to the replacement's start() of the service: {in_words(starts)}",),
        )
    ]


def _one_kill(fleet: Fleet, slot: int) -> tuple[float, float]:
    """Seconds to the replacement's start(), and to its answer."""
    workers = fleet.wait_ready(WORKERS)
    victim = next(int(each["pid"]) for each in fleet.status()["workers"] if each["slot"] == slot)
    others = [worker for worker in workers if worker != victim]
    # The victim as well: a connection that it had accepted would die with it.
    proc.stop(workers)
    try:
        with socket.create_connection(("127.0.0.1", fleet.port), 30) as sock, sock.makefile("rb") as file:
            sock.sendall(b"who\n")
            begun = time.monotonic()
            proc.kill(victim)
            pid, started = map(int, file.readline().split())
            answered = time.monotonic()
        proc.kill_and_wait(victim)
    finally:
        proc.resume(others)
    if pid in workers:
        raise HarnessError(f"worker {pid} has answered, which was stopped or killed")
    return started / 1e9 - begun, answered - begun
