"""Play a case: do it to each host in turn under load, bring the host back, and hear the witnesses.

Which cases there are is said in `cases.py`; what a loss belonged to, in `losses.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from soak import proc
from soak.errors import HarnessError
from soak.ledger import Ledger
from soak.load import Clients
from soak.report import Row, Verdict, upper_bound, zero
from soak.tally import Counts

from .balancer import Balancer
from .cases import Case, May
from .host import Host
from .losses import Attributed, Event, Loss, Owner, Passage, attribute, in_words
from .stage import DEADLINE, Stage, answers, wait_answers

#: How often a case is done at scale 1, to the hosts in turn.
ROUNDS = 10
#: New connections that each host has to answer before a round, and that it has to answer once it is back.
ANSWERS = 10
#: Losses that are told one by one.
TOLD = 5


@dataclass
class Peers:
    """Answers behind each balancer that tells the true peer, and those of them that named another, over all cases."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


@dataclass
class Back:
    """New connections answered since hosts were back, until they had answered `ANSWERS`: theirs, and of all hosts."""

    own: int = 0
    all: int = 0


@dataclass
class Outcome:
    """What the witnesses of a case say."""

    ledger: Ledger
    counts: Counts
    passages: list[Passage]
    attributed: list[Attributed]
    moved: int
    strangers: int
    rounds: int
    back: Back
    held: int
    noted: str = ""
    contradictions: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> list[Attributed]:
        """The losses that were not a connection of a host that something was done to."""
        return [each for each in self.attributed if each.owner is not Owner.HOST]

    @property
    def retries(self) -> int:
        """How often the balancer tried again, because a host did not take a connection."""
        return sum(each.retries for each in self.passages)

    def compare(self, proxy: bool) -> None:
        """Find what the witnesses contradict each other in; `proxy`: the balancer has told the true peer."""
        ledger, counts, wrong = self.ledger, self.counts, self.contradictions
        n, passed = ledger.attempts, len(self.passages)
        if self.moved:
            wrong.append(f"{self.moved} answers came from another host than the first of their connection")
        if not proxy and self.strangers != ledger.exchanges:
            wrong.append(f"no host was told the true peer, and {ledger.exchanges - self.strangers} answers named it")
        if passed != n:
            wrong.append(f"{n} attempts, {passed} in the balancer's log")
        if len(self.attributed) != ledger.lost:
            wrong.append(f"{ledger.lost} lost, {len(self.attributed)} noted one by one")
        if ledger.lost == 0 and not self.retries and not counts.handled == counts.ended == n:
            wrong.append(f"{n} attempts, {counts.handled} handled by the hosts, {counts.ended} of them to the end")
        # A host may have been reached in an attempt that the balancer gave up.
        if not ledger.ok <= counts.handled <= n + self.retries:
            wrong.append(f"{ledger.ok} of {n} attempts ended well, {counts.handled} were handled by the hosts")
        if counts.exchanges < ledger.exchanges or (not ledger.lost and counts.exchanges != ledger.exchanges):
            wrong.append(f"{ledger.exchanges} answers taken, {counts.exchanges} given")

    def lines(self) -> list[str]:
        """Say what the witnesses have said."""
        told = self.foreign or self.attributed
        return [
            f"clients: {self.ledger}; {self.held} not begun",
            f"losses: {in_words(self.attributed)}",
            *(f"lost: {each}" for each in told[:TOLD]),
            f"hosts: {self.counts.handled} handled, {self.counts.ended} ended well, {self.counts.broken} broken",
            f"balancer: {len(self.passages)} connections, {self.retries} tried again",
            f"checks: {self.noted or 'none'}",
            f"back: the {self.rounds} hosts then answered {self.back.own} of {self.back.all} new connections",
            *(f"CONTRADICTION: {each}" for each in self.contradictions),
        ]


def play(stage: Stage, name: str, case: Case, peers: Peers) -> Row:
    """Play the case `ROUNDS` times at scale 1, and judge it. Raises HarnessError."""
    missing = case.missing()
    if missing:
        return Row(name, case.what, f"this version has no {' and no '.join(missing)}", 0, "0 lost", Verdict.ABSENT)
    outcome = _observe(stage, case)
    outcome.compare(case.proxy)
    if case.proxy:
        peers.answers[case.balancer] += outcome.ledger.exchanges
        peers.wrong[case.balancer] += outcome.strangers
    return judge(name, case, outcome)


def judge(name: str, case: Case, outcome: Outcome) -> Row:
    """Return the row of a case."""
    ledger, own = outcome.ledger, len(outcome.attributed) - len(outcome.foreign)
    what = f"{case.what}; {outcome.rounds} times"
    sound = not outcome.contradictions
    if case.may is May.NOTHING:
        return zero(name, what, ledger.lost, ledger.attempts, "connections", outcome.lines(), sound)
    if case.may is May.MUST_ANY:
        good, target = ledger.lost > 0, "more than 0"
        figure = f"{ledger.lost} of {ledger.attempts:,} connections"
    else:
        foreign = len(outcome.foreign)
        good = not foreign and (own > 0 or case.may is May.OWN)
        target = "0 that were not the host's" + (", and some that were" if case.may is May.MUST else "")
        figure = f"{own} of the host's; others: {foreign} of {ledger.attempts:,} connections"
    bound = f"<= {upper_bound(ledger.attempts)}" if case.may is not May.MUST_ANY and not outcome.foreign else ""
    verdict = Verdict.GOOD if good and sound else Verdict.BAD
    return Row(name, what, figure, ledger.attempts, target, verdict, bound, tuple(outcome.lines()))


def peer_row(peers: Peers) -> Row:
    """Return the row on the true peer, of all cases together."""
    what = "the peer that the handler saw, beside the client's own name of its socket; PROXY v2 by HAProxy, v1 by nginx"
    details = [f"{name}: {peers.wrong[name]} of {n:,} answers named another peer" for name, n in peers.answers.items()]
    return zero("peer", what, peers.wrong.total(), peers.answers.total(), "answers named another peer", details)


def _observe(stage: Stage, case: Case) -> Outcome:
    rounds = stage.context.count(ROUNDS * case.times)
    events: list[Event] = []
    back = Back()
    with stage.hosts(case) as hosts, stage.balancer(case, hosts) as balancer:
        with stage.load(balancer, stage.context.rate, case.patience) as load:
            for number in range(rounds):
                host = hosts[number % len(hosts)]
                events.append(_round(case, load, balancer, host, back))
            ledger, held = load.stop()
            last = load.last
        _wait_for_log(balancer, ledger)
        passages, noted = balancer.passages(), balancer.noted()
        counts = sum((host.counts() for host in hosts), Counts())
    losses = [Loss(**each) for each in (loss for result in last for loss in result["losses"])]
    attributed = attribute(losses, passages, events)
    moved, strangers = _sum(last, "moved"), _sum(last, "strangers")
    return Outcome(ledger, counts, passages, attributed, moved, strangers, rounds, back, held, noted)


def _round(case: Case, load: Clients, balancer: Balancer, host: Host, back: Back) -> Event:
    """Do to a host what the case says, and wait until it has its load again."""
    wait_answers(load, balancer.hosts, ANSWERS)
    began = time.time()
    ended = case.event(balancer, host)
    proc.wait_until(lambda: balancer.takes(host), DEADLINE, f"{balancer.program} that takes {host.name} again", 0.05)
    own, all_ = answers(load, host), _all_answers(load, balancer)
    wait_answers(load, [host], ANSWERS)
    back.own += answers(load, host) - own
    back.all += _all_answers(load, balancer) - all_
    return Event(host.number, began, ended)


def _all_answers(load: Clients, balancer: Balancer) -> int:
    return sum(answers(load, host) for host in balancer.hosts)


def _wait_for_log(balancer: Balancer, ledger: Ledger) -> None:
    """Wait until the balancer has logged every attempt; the comparison tells if it has not."""
    try:
        proc.wait_until(lambda: len(balancer.passages()) >= ledger.attempts, 15, "a line for every connection", 0.1)
    except HarnessError:
        return


def _sum(results: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(result[name]) for result in results)
