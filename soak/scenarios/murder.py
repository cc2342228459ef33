"""Minutes of random kills: it goes on serving all the while, and afterwards nothing of them is left.

A slot may be forked ten times a minute, and waits longer each time its workers die young (`core/restart_policy.py`).
With this number of workers at this pace, most live longer than the ten seconds that make a worker stable.
"""

from __future__ import annotations

import os
import time

from .. import kernel, proc
from ..errors import HarnessError
from ..ledger import Bin, Ledger
from ..load import Clients
from ..report import Row, zero
from ..scenario import QUESTION, Context, by_hand, hear, loaded
from ..servers import Fleet, serving

WORKERS = 64
SECONDS = 600.0
#: Seconds between kills.
PAUSE = 0.3
RATE = 200.0
AFTERWARDS = 100
#: Seconds until the last slot has its worker back: the longest back-off, and the budget of a minute.
HEALING = 120.0
#: What a kill may cost: connections of that worker. No client may be turned away or left waiting.
OWN = (Bin.OK, Bin.RESET_BEFORE, Bin.RESET_AFTER, Bin.EARLY_END)


def run(context: Context) -> list[Row]:
    """Kill workers under load, let them be replaced, and compare the witnesses."""
    seconds = context.seconds(SECONDS, 5.0)
    with serving(workers=WORKERS, unix=True) as fleet:
        fleet.wait_ready(WORKERS)
        descriptors = proc.descriptors(fleet.pid)
        before = kernel.read()
        with loaded(context, [(1.0, target) for target in fleet.targets()], 3.0, RATE) as load:
            kills, fewest = _kill_on_and_on(context, fleet, load, seconds)
            ledger, _ = load.stop()
        begun = time.monotonic()
        wrong = _heal(fleet)
        healed = time.monotonic() - begun
        testimony = hear(ledger, [fleet], before)
        wrong += testimony.contradictions
        orphaned = fleet.tally().open
        fresh = _try(fleet)
        wrong += _look(fleet, descriptors)
        details = [
            f"{kills} kills, {PAUSE:g} s apart; at least {fewest} workers alive; whole again after {healed:.0f} s",
            *(f"wrong: {each}" for each in wrong),
            f"{orphaned} handlers died with their workers, {ledger.lost} clients have noticed",
            *testimony.all,
        ]
    stalled = sum(number for end, number in ledger.bins().items() if end not in OWN)
    return [
        zero(
            "murder",
            f"{kills} kill -9 of random workers, W={WORKERS}: turned away or left waiting meanwhile",
            stalled,
            ledger.attempts,
            "connections",
            details,
            testimony.agree,
        ),
        zero(
            "murder",
            "connections afterwards; no descriptor, zombie or file left",
            fresh.lost,
            fresh.attempts,
            "connections",
            [],
            sound=not wrong,
        ),
    ]


def _kill_on_and_on(context: Context, fleet: Fleet, load: Clients, seconds: float) -> tuple[int, int]:
    """How many kills, and the fewest workers that were alive at any of them."""
    dice = context.dice("murder")
    begun = time.monotonic()
    kills, fewest = 0, WORKERS
    while (now := time.monotonic()) < begun + seconds:
        living = [pid for pid in proc.children(fleet.pid) if proc.alive(pid)]
        if living:
            fewest = min(fewest, len(living))
            proc.kill(dice.choice(living))
            kills += 1
            if kills % 200 == 0:
                context.say(f"murder: {kills} kills, {len(living)} workers, {load.attempts:,} connections")
        elif not proc.alive(fleet.pid):
            raise HarnessError(f"the supervisor has given up after {kills} kills; it logged:\n{fleet.tail()}")
        time.sleep(max(0.0, begun + (kills + 1) * PAUSE - now))
    return kills, fewest


def _heal(fleet: Fleet) -> list[str]:
    try:
        fleet.wait_ready(WORKERS, HEALING)
    except HarnessError as exc:
        return [str(exc)]
    return []


def _try(fleet: Fleet) -> Ledger:
    ledger = Ledger()
    with by_hand(ledger) as pump:
        for number in range(AFTERWARDS):
            pump.begin(fleet.targets()[number % 2], QUESTION)
        pump.run(60)
    ledger.balance()
    return ledger


def _look(fleet: Fleet, descriptors: int) -> list[str]:
    """What was left behind; stops the server."""
    wrong = []
    zombies = [pid for pid in proc.children(fleet.pid) if proc.state(pid) == "Z"]
    now = proc.descriptors(fleet.pid)
    if zombies:
        wrong.append(f"zombies: {zombies}")
    if now != descriptors:
        wrong.append(f"{now} descriptors in the supervisor, {descriptors} before")
    status = fleet.server.stop(timeout=60)
    if status:
        wrong.append(f"exit status {status} after TERM")
    files = [*os.listdir(fleet.folder / "tmp"), *(path.name for path in fleet.folder.glob("*.sock"))]
    return wrong + ([f"files left: {files}"] if files else [])
