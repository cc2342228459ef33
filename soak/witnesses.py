"""Whether three witnesses tell the same: the clients' ledger, the workers' tallies and status, the kernel.

Pure: what they said goes in, lines and contradictions come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .kernel import ABORTS, QUEUE, Counters, in_words
from .ledger import Bin, Ledger
from .tally import Counts


@dataclass(frozen=True, slots=True)
class Testimony:
    """What was said, and where it does not fit together."""

    lines: tuple[str, ...]
    contradictions: tuple[str, ...]

    @property
    def agree(self) -> bool:
        return not self.contradictions

    @property
    def all(self) -> list[str]:
        """All lines, and the verdict at their end."""
        verdict = [f"CONTRADICTION: {each}" for each in self.contradictions] or ["the witnesses agree"]
        return [*self.lines, *verdict]


def compare(
    ledger: Ledger,
    counts: Counts,
    counters: Counters,
    accepted: Mapping[int, int] | None = None,
    handled: Mapping[int, int] | None = None,
) -> Testimony:
    """`counts` of all workers that there were, `counters` since the load began. `accepted` and `handled` are what the
    status and the tally say of each worker that still runs, when no connection is open.

    If nothing was lost the numbers have to be equal, and no socket was closed in anger. Otherwise the workers may have
    seen less than was tried, and given more answers than arrived.
    """
    wrong: list[str] = []

    def say(fits: bool, complaint: str) -> None:
        if not fits:
            wrong.append(complaint)

    bins = ledger.bins()
    unseen = bins[Bin.REFUSED] + bins[Bin.CONNECT_TIMEOUT]
    tcp = sum((ledger.bins("tcp") + ledger.bins("tls")).values())
    opened = counters.get("PassiveOpens", 0)
    if ledger.lost == 0:
        say(counts.handled == ledger.attempts, f"{ledger.attempts} attempts, {counts.handled} handled")
        say(counts.ended == ledger.attempts, f"{ledger.attempts} attempts, {counts.ended} handlers that ended well")
        say(counts.exchanges == ledger.exchanges, f"{ledger.exchanges} answers taken, {counts.exchanges} given")
        say(opened == tcp, f"{tcp} attempts over TCP, {opened} connections opened in the kernel")
    else:
        say(ledger.ok <= counts.handled <= ledger.attempts - unseen, f"{counts.handled} handled, {ledger}")
        say(counts.exchanges >= ledger.exchanges, f"{ledger.exchanges} answers taken, {counts.exchanges} given")
        say(tcp - unseen <= opened <= tcp, f"{tcp} attempts over TCP, {opened} connections opened in the kernel")
    full = {name: counters[name] for name in QUEUE if counters.get(name)}
    say(not full, f"the kernel's queues were full, which is no loss of the server's: {full}")
    aborts = {name: counters[name] for name in ABORTS if counters.get(name)}
    say(ledger.lost > 0 or not aborts, f"connections were aborted, and no client has noticed: {aborts}")
    for pid, number in (accepted or {}).items():
        say(number == (handled or {}).get(pid, 0), f"worker {pid}: status {number} accepted, tally {handled}")
    lines = (
        f"clients: {ledger}",
        *(f"lost: {note}" for note in ledger.notes[:5]),
        f"workers: {counts.handled} handled, {counts.ended} ended well, {counts.broken} broken, "
        f"{counts.exchanges} exchanges; status of {len(accepted or {})} living ones compared",
        f"kernel: {in_words(counters)}",
    )
    return Testimony(lines, tuple(wrong))
