"""What prefork is meant to cost at most, beside its peers, and how a run compares with that.

The targets are ratios of the server's CPU time for one exchange, in the same run. Nothing is measured here.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
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
    unchanged: bool = False
    """With a handler that was written for asyncio's streams."""


_US, _UP = roster.UVLOOP_STREAMS, roster.UVLOOP_PROTOCOL
_AS, _AP = roster.ASYNCIO_STREAMS, roster.ASYNCIO_PROTOCOL

TARGETS = (
    Target(works.ECHO, _US, 0.90),
    Target(works.ECHO, _AS, 0.75),
    Target(works.ECHO, roster.TORNADO, 0.45),
    Target(works.ECHO, _UP, 1.40),
    Target(works.ECHO, _US, 0.95, unchanged=True),
    Target(works.ECHO, _AS, 0.80, unchanged=True),
    Target(works.LINES, _US, 0.18),
    Target(works.LINES, _UP, 0.25),
    Target(works.LINES, roster.TORNADO, 0.10),
    Target(works.CLOSE, _US, 0.90),
    Target(works.CLOSE, _AS, 0.40),
    Target(works.TLS_ECHO, _UP, 1.10),
    Target(works.TLS_ECHO, _AP, 0.75),
    Target(works.TLS_ECHO, _AS, 0.60),
    Target(works.TLS_BULK, _UP, 1.05),
    Target(works.TLS_BULK, _AP, 0.90),
    Target(works.TLS_FULL, _UP, 1.00),
    Target(works.TLS_FULL, _US, 0.80),
    Target(works.ECHO_HUGE, _UP, 1.00),
    Target(works.ECHO_HUGE_ALONE, _UP, 1.00),
)
#: Bytes that an idle connection keeps resident.
IDLE_PLAIN = 2600
#: The same by TLS, as a share of what it is with uvloop's streams.
IDLE_TLS = 0.8
#: From the command to its READY, with 2 workers whose service imports nothing.
START_SECONDS = 0.250


@dataclass(frozen=True, slots=True)
class Judgement:
    """A line of the table of targets: what was found, on asyncio and on uvloop, as text."""

    work: str
    against: str
    limit: str
    on_asyncio: str
    on_uvloop: str


def judge(results: Results) -> list[Judgement]:
    """All targets; what was not measured says so."""
    return [*(_judge(results, target) for target in TARGETS), *_growth(results), *_idle(results), *_start(results)]


def _text(found: Ratio | None, limit: float) -> str:
    if found is None:
        return verdict(found, limit)
    digits = 3 if limit < 0.2 else 2
    value, least, most = (f"{each:.{digits}f}" for each in (found.value, found.least, found.most))
    return f"{value} ({least} to {most}), {verdict(found, limit)}"


def _judge(results: Results, target: Target) -> Judgement:
    theirs = results.column(target.work.name, target.peer.name, "cpu_us")

    def against(ours: roster.Contestant) -> str:
        mine = results.column(target.work.name, ours.name, "cpu_us")
        return _text(ratio(mine, theirs) if mine and theirs else None, target.limit)

    title = target.work.title
    if target.unchanged:
        title += ", unchanged (reader, writer)"
        return Judgement(title, target.peer.label, f"{target.limit:.2f}", against(roster.PREFORK_STREAMS), "")
    both = (against(roster.PREFORK), against(roster.PREFORK_UVLOOP))
    return Judgement(title, target.peer.label, f"{target.limit:.2f}", *both)


def _growth(results: Results) -> Iterator[Judgement]:
    """CPU time for an exchange at 5,000 connections over that at 50, as a share of the floor's."""

    def grown(contestant: roster.Contestant) -> list[float | None]:
        few, many = (results.column(w.name, contestant.name, "cpu_us") for w in (works.ECHO, works.ECHO_MANY))
        return list(growth(few, many)) if few and many else []

    floor = grown(roster.FLOOR)
    found = []
    for ours in (roster.PREFORK, roster.PREFORK_UVLOOP):
        mine = grown(ours)
        found.append(_text(ratio(mine, floor) if mine and floor else None, 1.0))
    yield Judgement("echo 1 KiB, growth from 50 to 5,000 connections", "the floor's growth", "1.00", *found)


def _idle(results: Results) -> Iterator[Judgement]:
    memory = results.memory
    ours = [memory.get(each.name) for each in (roster.PREFORK, roster.PREFORK_UVLOOP)]
    plain = [None if each is None else each.plain for each in ours]
    found = [
        "not measured" if each is None else f"{each:,.0f} B, {'met' if each <= IDLE_PLAIN else 'missed'}"
        for each in plain
    ]
    yield Judgement("resident bytes for an idle connection", "", f"{IDLE_PLAIN:,} B", *found)
    peer = memory.get(roster.UVLOOP_STREAMS.name)
    theirs = None if peer is None else peer.tls
    by_tls = [None if each is None else each.tls for each in ours]
    shares = [None if a is None or not theirs else Ratio((a / theirs,)) for a in by_tls]
    texts = ["not measured" if each is None else f"{each.value:.2f}, {verdict(each, IDLE_TLS)}" for each in shares]
    yield Judgement("the same by TLS 1.3", roster.UVLOOP_STREAMS.label, f"{IDLE_TLS:.2f}", *texts)


def _start(results: Results) -> Iterator[Judgement]:
    found = []
    for loop in ("asyncio", "uvloop"):
        command = results.commands.get(loop)
        if command is None or not command.start_seconds:
            found.append("not measured")
            continue
        times = command.start_seconds
        middle = statistics.median(times)
        said = "met" if middle <= START_SECONDS else "missed"
        found.append(f"{middle * 1000:.0f} ms ({min(times) * 1000:.0f} to {max(times) * 1000:.0f}), {said}")
    yield Judgement("`prefork serve`, start to READY, 2 workers", "", f"{START_SECONDS * 1000:.0f} ms", *found)
