"""The supervisor is killed at a random moment: soon afterwards no worker is alive, and the port is free."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import time
from collections import Counter

from .. import proc
from ..report import Row, zero
from ..scenario import Context
from ..servers import Fleet, serving

WORKERS = 4
ROUNDS = 300
PORT = 8000
#: Seconds from the kill to the look.
PATIENCE = 0.25
MOMENTS = ("start", "serving", "reload", "drain")


def run(context: Context) -> list[Row]:
    """Rounds of all moments in turn; each counts if anything was left to survive."""
    rounds = context.count(ROUNDS, 2 * len(MOMENTS))
    dice = context.dice("orphans")
    length = _length_of_a_start()
    bad: list[str] = []
    with_workers: Counter[str] = Counter()
    for number in range(rounds):
        moment = MOMENTS[number % len(MOMENTS)]
        forked, trouble = _one_round(moment, PORT + number % 1000, dice, length)
        with_workers[moment] += forked
        bad += [f"round {number}, {moment}: {trouble}"] if trouble else []
        if (number + 1) % 50 == 0:
            context.say(f"orphans: {number + 1} rounds, {len(bad)} bad")
    details = [
        f"rounds in which there were workers to survive: {dict(with_workers)}; a start takes {length * 1000:.0f} ms",
        *bad[:10],
    ]
    later = f"{PATIENCE * 1000:.0f} ms later: no process, port free"
    what = f"kill -9 of the supervisor (start, serving, reload, drain); {later}"
    sound = all(with_workers[moment] for moment in MOMENTS)
    return [zero("orphans", what, len(bad), rounds, "rounds", details, sound)]


def _length_of_a_start() -> float:
    begun = time.monotonic()
    with serving(workers=WORKERS, port=PORT):
        return time.monotonic() - begun


def _one_round(moment: str, port: int, dice: random.Random, length: float) -> tuple[bool, str]:
    """Whether there were workers, and what was wrong."""
    with serving(workers=WORKERS, port=port, wait_ready=moment != "start") as fleet, contextlib.ExitStack() as clients:
        if moment == "start":
            time.sleep(length * dice.uniform(0.5, 1.15))
        else:
            for _ in range(8):
                clients.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            _disturb(fleet, moment)
            time.sleep(dice.uniform(0, 0.25))
        workers = [pid for pid in proc.session(fleet.pid) if pid != fleet.pid]
        fleet.server.signal(signal.SIGKILL)
        fleet.server.wait(10)
        time.sleep(PATIENCE)
        return bool(workers), _look(fleet.pid, port)


def _disturb(fleet: Fleet, moment: str) -> None:
    if moment == "reload":
        fleet.server.signal(signal.SIGHUP)
    elif moment == "drain":
        # The clients stay, so the drain lasts.
        fleet.server.signal(signal.SIGTERM)


def _look(leader: int, port: int) -> str:
    trouble = []
    left = proc.session(leader)
    if left:
        trouble.append(f"processes left: {left}")
    with socket.socket() as sock:
        # As every server does, or the remains of its own connections would be in its way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError as exc:
            trouble.append(f"port {port} cannot be bound: {exc}")
    return "; ".join(trouble)
