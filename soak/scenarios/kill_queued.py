"""A worker is killed while connections wait in the queue: its siblings or successor answer them, none is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .. import kernel, proc
from ..attempt import Attempt, Script, Target
from ..ledger import Ledger
from ..report import Row, zero
from ..scenario import QUESTION, Context, by_hand, hear
from ..servers import Fleet, serving

WORKERS = 4
KILLS = 500
QUEUE = 40
#: Every fourth connection goes to the unix socket.
UNIX_EVERY = 4
#: Kills of each worker of one server: the deaths in a row that are answered at once, without a back-off.
KILLS_PER_SLOT = 3


@dataclass
class _Result:
    """The result of all servers together."""

    ledger: Ledger = field(default_factory=Ledger)
    by_successor: int = 0
    """Connections that were answered by the replacement, not by a sibling."""
    wrong: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)


def run(context: Context) -> list[Row]:
    """With one listening socket for all workers."""
    return measure(context, "kill-queued", "shared listener")


def measure(context: Context, name: str, what: str, *options: str, own_queues: bool = False) -> list[Row]:
    """Server after server, and a few kills of each. `own_queues`: each worker has a TCP socket of its own, so what
    waited in the victim's has to be answered by its successor."""
    kills = context.count(KILLS, 2)
    result, done = _Result(), 0
    while done < kills:
        part = min(kills - done, WORKERS * KILLS_PER_SLOT)
        _one_server(result, part, WORKERS if own_queues else 1, *options)
        done += part
        if done % 60 == 0:
            context.say(f"{name}: {done} kills, {result.ledger}")
    ledger = result.ledger
    details = [
        f"all servers: {ledger}; {result.by_successor} answered by the victim's successor",
        *ledger.notes[:5],
        *result.wrong[:10],
        *(f"last server: {line}" for line in result.last),
    ]
    whole = f"{what}, W={WORKERS}, {kills} kills with {QUEUE} queued (tcp, unix)"
    sound = not result.wrong and (result.by_successor > 0 or not own_queues)
    return [zero(name, whole, ledger.lost, ledger.attempts, "queued connections", details, sound)]


def _one_server(result: _Result, kills: int, listeners: int, *options: str) -> None:
    ledger = Ledger()
    with serving("soak.services.counted:service", *options, workers=WORKERS, unix=True) as fleet:
        before = kernel.read()
        found = len(kernel.queues(fleet.port))
        if found != listeners:
            result.wrong.append(f"{found} listening sockets instead of {listeners}")
        for number in range(kills):
            _one_kill(result, ledger, fleet, number % WORKERS)
        fleet.wait_ready(WORKERS)
        testimony = hear(ledger, [fleet], before)
    result.ledger.merge(ledger)
    result.wrong += testimony.contradictions
    result.last = testimony.all


def _one_kill(result: _Result, ledger: Ledger, fleet: Fleet, slot: int) -> None:
    workers = fleet.wait_ready(WORKERS)
    victim = next(int(each["pid"]) for each in fleet.status()["workers"] if each["slot"] == slot)
    with by_hand(ledger) as pump:
        # From here on no worker accepts, so a connection opened now belongs to none.
        proc.stop(workers)
        queued = _fill(fleet, pump.begin)
        proc.kill_and_wait(victim)
        proc.resume(worker for worker in workers if worker != victim)
        pump.run(120)
    result.by_successor += sum(each.pid not in {0, *workers} for each in queued)
    if any(each.pid == victim for each in queued):
        result.wrong.append(f"worker {victim} has answered after it was killed: the queue was not one")


def _fill(fleet: Fleet, begin: Callable[[Target, Script], Attempt]) -> list[Attempt]:
    """Connections with their requests sent, all of them in the queue by what the kernel says."""
    tcp, unix = fleet.targets()
    queued = [begin(unix if number % UNIX_EVERY == 0 else tcp, QUESTION) for number in range(QUEUE)]
    expected = sum(each.kind.startswith("tcp") for each in queued)
    proc.wait_until(lambda: kernel.queued(fleet.port) == expected, 10, f"{expected} connections in the queue")
    return queued
