"""The control run: a server that is sure to lose connections, and a harness that has to notice each of them."""

from __future__ import annotations

import math

from .. import kernel, naive, proc
from ..attempt import Target
from ..errors import HarnessError
from ..ledger import Bin, Ledger
from ..report import Row, Verdict
from ..scenario import QUESTION, Context, by_hand

WORKERS = 4
PORT = 7000
QUEUE = 100


def run(context: Context) -> list[Row]:
    """Stop all workers, fill their queues, kill one, and see exactly those lost that waited for it."""
    rounds = context.count(10)
    ledger, doomed = Ledger(), 0
    before = kernel.read()
    for _ in range(rounds):
        doomed += _one_round(ledger)
    ledger.balance()
    bins = ledger.bins()
    seen = bins[Bin.RESET_BEFORE]
    share = seen / ledger.attempts
    # Which queue a connection goes to is a throw of dice, good for five standard deviations; what waits in each is not.
    spread = 5 * math.sqrt((1 / WORKERS) * (1 - 1 / WORKERS) / ledger.attempts)
    good = seen > 0 and seen == doomed == ledger.lost and abs(share - 1 / WORKERS) <= spread
    return [
        Row(
            "control",
            f"SO_REUSEPORT, {WORKERS} workers, one killed: its queue is lost ({rounds} kills)",
            f"{seen} of {ledger.attempts:,} reset ({share:.0%}); the kernel had {doomed} in those queues",
            ledger.attempts,
            f"all of them, about 1/{WORKERS}",
            Verdict.GOOD if good else Verdict.BLIND,
            details=(f"clients: {ledger}", f"kernel: {kernel.in_words(kernel.since(before))}"),
        )
    ]


def _one_round(ledger: Ledger) -> int:
    """How many connections waited for the worker that was killed."""
    with naive.serving(PORT, WORKERS) as workers, by_hand(ledger) as pump:
        proc.stop(workers)
        for _ in range(QUEUE):
            pump.begin(Target(("127.0.0.1", PORT)), QUESTION)
        while kernel.queued(PORT) < QUEUE:
            pump.turn(0.01)
        victim = workers.pop()
        waiting = [number for inode, number in kernel.queues(PORT).items() if inode in proc.sockets(victim)]
        if len(waiting) != 1:
            raise HarnessError(f"the victim holds {len(waiting)} listening sockets, not one")
        proc.kill(victim)
        proc.resume(workers)
        pump.run(60)
    return waiting[0]
