"""What prefork is meant to cost at most, beside its peers, and how a run compares with that.

The targets are ratios of the server's CPU time for one exchange, in the same run. Nothing is measured here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from . import roster, works
from .ratios import Ratio, growth, ratio, verdict
from .results import Results
from .works import Work


@dataclass(frozen=True, slots=True)
class Target:
    """`work` on prefork costs at most `limit` times what it costs on `peer`."""

    work: Work
    peer: roster.Contestant
    limit: float
    fallback: float | None = None
    """The limit for handlers that run in asyncio.Task; None: the same."""
    ours: roster.Contestant = roster.PREFORK


_US, _UP = roster.UVLOOP_STREAMS, roster.UVLOOP_PROTOCOL

TARGETS = (
    Target(works.ECHO, _UP, 1.05, 1.35),
    Target(works.ECHO, _US, 0.55, 0.75),
    Target(works.ECHO, roster.FLOOR, 1.40),
    Target(works.ECHO_SMALL, _UP, 1.00, 1.10),
    Target(works.ECHO, _UP, 1.15, 1.45, ours=roster.PREFORK_STREAMS),
    Target(works.LINES, _US, 0.10),
    Target(works.LINES, roster.UVLOOP_JOINED, 1.20),
    Target(works.CLOSE, _UP, 1.00, 1.05),
    Target(works.CLOSE, _US, 0.55, 0.60),
    Target(works.RESET, _UP, 1.00, 1.05),
    Target(works.RESET, _US, 0.55, 0.60),
    Target(works.ECHO_HUGE_FEW, _UP, 1.60),
    Target(works.ECHO_HUGE_FEW, _US, 0.50),
    Target(works.ECHO_HUGE_FEW, roster.PREFORK_PURE, 1.00),
    Target(works.TLS_ECHO, _UP, 1.15, 1.30),
    Target(works.TLS_ECHO, _US, 0.45),
    Target(works.TLS_BULK, _UP, 1.05, 1.30),
    Target(works.TLS_FULL, _UP, 1.00),
    Target(works.TLS_FULL, _US, 0.80),
)
#: The verdict on what a run has no figures of.
NOT_MEASURED = "not measured"
#: Bytes that an idle connection keeps resident, and with asyncio.Task.
IDLE_PLAIN, IDLE_PLAIN_FALLBACK = 1300, 1600
#: The same by TLS, as a share of what it is with uvloop's streams.
IDLE_TLS = 0.8
#: From the command to its READY, with 2 workers whose service imports nothing.
START_SECONDS = 0.220
#: CPU time for an exchange at 5,000 connections over that at 50, as a share of the floor's growth.
GROWTH = 1.0

#: What a run must have measured for all verdicts.
WORKS = tuple(work for work in works.FULL if work is works.ECHO_MANY or any(each.work is work for each in TARGETS))
CONTESTANTS = tuple(each for each in roster.ALL if any(each in (target.ours, target.peer) for target in TARGETS))
IDLERS = (roster.PREFORK, _US)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of the check: the verdict, and what it is about."""

    verdict: str
    text: str


def judge(results: Results) -> list[Judgement]:
    """Judge all targets; what was not measured says so."""
    return [*(_judge(results, target) for target in TARGETS), _growth(results), *_idle(results), _start(results)]


def _limit(limit: str, fallback: str) -> str:
    return f"at most {limit}; {fallback} with asyncio.Task" if fallback else f"at most {limit}"


def _ratio(subject: str, found: Ratio | None, against: str, limit: float, fallback: float | None = None) -> Judgement:
    bound = _limit(f"{limit:.2f}", "" if fallback is None else f"{fallback:.2f}")
    if found is None:
        return Judgement(NOT_MEASURED, f"{subject}: of {against} ({bound})")
    # Three digits, or 1.004 over a limit of 1.00 would be shown as 1.00 and missed.
    value, least, most = (f"{each:.3f}" for each in (found.value, found.least, found.most))
    said, _, count = verdict(found, limit).partition(" (")
    rounds = f"rounds {least} to {most}" + (f", {count.removesuffix(')')}" if count else "")
    return Judgement(said, f"{subject}: {value} of {against} ({bound}; {rounds})")


def _compared(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Ratio | None:
    return ratio(ours, theirs) if ours and theirs else None


def _judge(results: Results, target: Target) -> Judgement:
    ours, theirs = (results.column(target.work.name, each.name, "cpu_us") for each in (target.ours, target.peer))
    title = target.work.title
    if target.ours is not roster.PREFORK:
        title = f"{target.ours.label}: {title}"
    return _ratio(title, _compared(ours, theirs), target.peer.label, target.limit, target.fallback)


def _growth(results: Results) -> Judgement:
    def grown(contestant: roster.Contestant) -> list[float | None]:
        few, many = (results.column(w.name, contestant.name, "cpu_us") for w in (works.ECHO, works.ECHO_MANY))
        return list(growth(few, many)) if few and many else []

    found = _compared(grown(roster.PREFORK), grown(roster.FLOOR))
    return _ratio("echo 1 KiB, growth from 50 to 5,000 connections", found, "the growth of C", GROWTH)


def _idle(results: Results) -> Iterator[Judgement]:
    ours, peer = (results.memory.get(each.name) for each in IDLERS)
    subject = "resident bytes of an idle connection"
    bound = _limit(f"{IDLE_PLAIN:,}", f"{IDLE_PLAIN_FALLBACK:,}")
    if ours is None or ours.plain is None:
        yield Judgement(NOT_MEASURED, f"{subject} ({bound})")
    else:
        yield Judgement(_said(ours.plain, IDLE_PLAIN), f"{subject}: {ours.plain:,.0f} ({bound})")
    shared = None
    if ours is not None and peer is not None and ours.tls is not None and peer.tls:
        shared = Ratio((ours.tls / peer.tls,))
    yield _ratio("resident bytes of an idle connection by TLS 1.3", shared, _US.label, IDLE_TLS)


def _start(results: Results) -> Judgement:
    subject, bound = "prefork serve, start to READY, 2 workers", _limit(f"{START_SECONDS * 1000:.0f} ms", "")
    command = results.commands.get("asyncio")
    if command is None or not command.start_seconds:
        return Judgement(NOT_MEASURED, f"{subject} ({bound})")
    times = [each * 1000 for each in command.start_seconds]
    middle = statistics.median(times)
    rounds = f"rounds {min(times):.0f} to {max(times):.0f}"
    return Judgement(_said(middle / 1000, START_SECONDS), f"{subject}: {middle:.0f} ms ({bound}; {rounds})")


def _said(value: float, limit: float) -> str:
    return "met" if value <= limit else "missed"
