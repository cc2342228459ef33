"""Accepted, and nothing read yet: the connection is its worker's, whose reload or stop has to wait for it."""

from __future__ import annotations

import math
import random
import signal
import time

from .. import kernel, proc
from ..attempt import Attempt, Phase, Script
from ..ledger import Ledger
from ..report import Row, zero
from ..scenario import Context, by_hand, hear
from ..servers import Fleet, reload, serving

WORKERS = 4
CONNECTIONS = 1000
BATCH = 50
#: The maximum of seconds from the end of the reload, or the beginning of the stop, to the request.
LATEST = 0.2

_LATE = Script("unread", ((math.inf, 64),))


def run(context: Context) -> list[Row]:
    """Batches: connect, wait until the handlers have them, reload or stop, and only then send the requests."""
    batches = -(-context.count(CONNECTIONS, 2 * BATCH) // BATCH)
    return [
        _measure(context, "reload", batches - batches // 2),
        _measure(context, "TERM", batches // 2),
    ]


def _measure(context: Context, how: str, batches: int) -> Row:
    ledger, wrong = Ledger(), list[str]()
    dice = context.dice(f"unread {how}")
    for _ in range(batches):
        with serving(workers=WORKERS, unix=True) as fleet:
            wrong += _one_batch(fleet, ledger, how, dice)
    ledger.balance()
    what = f"accepted, {how}, then the request; W={WORKERS}, batches of {BATCH} (tcp, unix)"
    shown = [f"{how}: clients: {ledger}", *ledger.notes[:5], *wrong[:10]]
    return zero("unread", what, ledger.lost, ledger.attempts, "connections", shown, sound=not wrong)


def _one_batch(fleet: Fleet, ledger: Ledger, how: str, dice: random.Random) -> list[str]:
    """What was wrong, apart from losses."""
    before, own = kernel.read(), Ledger()
    old = set(fleet.wait_ready(WORKERS))
    with by_hand(own) as pump:
        batch = [pump.begin(fleet.targets()[number % 2], _LATE) for number in range(BATCH)]
        # The handlers say themselves that they have been called: the side channel is their tally.
        end = time.monotonic() + 30
        while not _all_wait(fleet, batch) and time.monotonic() < end:
            pump.turn(0.005)
        wrong = [] if fleet.tally().open == BATCH else [f"{fleet.tally().open} handlers for {BATCH} connections"]
        wrong += _disturb(fleet, how)
        time.sleep(dice.uniform(0, LATEST))
        for attempt in batch:
            pump.go(attempt)
        pump.run(60)
    ledger.merge(own)
    if own.lost:
        wrong.append(f"{own.lost} of a batch lost; the server logged: {' / '.join(fleet.tail().splitlines())}")
    wrong += [f"answered by {each.pid}, which is no worker from before" for each in batch if each.pid not in old | {0}]
    if how == "TERM":
        status = fleet.server.wait(60)
        wrong += [] if status == 0 else [f"exit status {status} after TERM"]
    else:
        testimony = hear(own, [fleet], before)
        wrong += testimony.contradictions
    return wrong


def _all_wait(fleet: Fleet, batch: list[Attempt]) -> bool:
    """On both sides: a client may still have to hear that it is connected when its handler has been called."""
    return all(each.phase is Phase.WAITING for each in batch) and fleet.tally().open == BATCH


def _disturb(fleet: Fleet, how: str) -> list[str]:
    """Reload until it is done, or ask for the stop until every worker has heard of it."""
    if how == "reload":
        trouble = reload(fleet, by_signal=True)
        return [f"the reload failed: {trouble}"] if trouble else []
    fleet.server.signal(signal.SIGTERM)
    # A worker that happens to have no connection ends at once, and is not in the status any more.
    proc.wait_until(lambda: not fleet.workers("ready"), 10, "workers that drain")
    return []
