"""A part of `hangs`: the whole server is frozen for longer than the hang timeout, and no worker is killed for it."""

from __future__ import annotations

import contextlib
import socket
import time

from ..freezer import freezer
from ..report import Row, zero
from ..scenario import Context
from ..servers import Fleet, serving

FREEZES = 100
#: Servers that are frozen together; each freeze counts once for each.
TREES = 5
WORKERS = 2
TIMEOUT = 1.0
#: Seconds after the last thaw: a wrong verdict would have come by then.
AFTERWARDS = 3.0


def measure(context: Context) -> Row:
    """Freeze and thaw, at random distances, so that some freezes fall into the grace after the one before."""
    rounds = -(-context.count(FREEZES, TREES) // TREES)
    dice = context.dice("freezes")
    with contextlib.ExitStack() as stack:
        fleets = [
            stack.enter_context(serving(*_SERVICE, "--hang-timeout", str(TIMEOUT), workers=WORKERS))
            for _ in range(TREES)
        ]
        before = {fleet.pid: set(fleet.wait_ready(WORKERS)) for fleet in fleets}
        everybody = [pid for fleet in fleets for pid in (fleet.pid, *before[fleet.pid])]
        with freezer(everybody) as ice:
            for _ in range(rounds):
                ice.freeze()
                time.sleep(TIMEOUT * dice.uniform(1.2, 1.8))
                ice.thaw()
                time.sleep(dice.uniform(0.02, 1.5))
            means = ice.means
        time.sleep(AFTERWARDS)
        killed = sum(len(before[fleet.pid] - set(fleet.workers())) for fleet in fleets)
        condemned = sum(fleet.server.stderr().count("hangs: ") for fleet in fleets)
        silent = [fleet for fleet in fleets if not _answers(fleet)]
    frozen = rounds * TREES
    what = f"whole trees frozen for 1.2 to 1.8 of --hang-timeout {TIMEOUT:g}, by {means}: healthy workers killed"
    details = [f"freezes: {condemned} verdicts in the logs, {len(silent)} of {TREES} servers do not answer afterwards"]
    return zero("hangs", what, killed, frozen, "freezes", details, sound=not condemned and not silent)


_SERVICE = ("soak.services.bare:service",)


def _answers(fleet: Fleet) -> bool:
    with socket.create_connection(("127.0.0.1", fleet.port), 10) as sock:
        sock.sendall(b"who\n")
        return bool(sock.recv(100))
