"""Have a peer do each work once before it is measured; what it fails is left out of the run, by name and reason.

Young event loops serve some works and hang, crash or answer wrongly at others. Nothing is measured here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import BenchError
from .generator import Failure, Generator
from .roster import Contestant
from .rounds import Progress
from .servers import running
from .works import Work

#: Seconds without an event that count as a hang.
PATIENCE = 5.0
#: After this number of failures the remaining works of a kind of server are left out untried, because each may hang.
FAILURES = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """A work that a contestant failed, or was not asked for any more."""

    work: Work
    reason: str


def kept(contestant: Contestant, works: Sequence[Work], refusals: Sequence[Refusal]) -> Contestant | None:
    """Return the contestant without the works that it failed; None if none of `works` remains."""
    refused = frozenset(each.work.name for each in refusals)
    left = dataclasses.replace(contestant, refused=contestant.refused | refused)
    return left if any(left.does(work) for work in works) else None


def told(contestant: Contestant, works: Sequence[Work], refusals: Sequence[Refusal]) -> list[str]:
    """Return a line for each reason, with the works that it concerns."""
    by_reason: dict[str, list[Work]] = {}
    for each in refusals:
        by_reason.setdefault(each.reason, []).append(each.work)
    able = [work for work in works if contestant.does(work)]
    return [f"{contestant.label}, {_named(failed, able)}: {reason}" for reason, failed in by_reason.items()]


def _named(failed: Sequence[Work], able: Sequence[Work]) -> str:
    if len(failed) == len(able):
        return "every work"
    if all(work.tls for work in failed) and len(failed) == sum(bool(work.tls) for work in able):
        return "every work by TLS"
    return "; ".join(work.title for work in failed)


def examine(
    contestants: Iterable[Contestant],
    works: Sequence[Work],
    generator: Generator,
    build: Path,
    certificate: tuple[str, str] | None,
    core: int,
    progress: Progress,
) -> tuple[list[Contestant], list[str]]:
    """Return the contestants with the works that they do, and a line for each thing that is left out."""
    remaining, lines = [], []
    for contestant in contestants:
        if not contestant.needs:
            remaining.append(contestant)
            continue
        progress(f"trying {contestant.label}")
        refusals = _tried(contestant, works, generator, build, certificate, core)
        lines += told(contestant, works, refusals)
        if (left := kept(contestant, works, refusals)) is not None:
            remaining.append(left)
    return remaining, lines


def _tried(
    contestant: Contestant,
    works: Sequence[Work],
    generator: Generator,
    build: Path,
    certificate: tuple[str, str] | None,
    core: int,
) -> list[Refusal]:
    by_server: dict[tuple[str, bool], list[Work]] = {}
    for work in works:
        if contestant.does(work):
            by_server.setdefault(work.server, []).append(work)
    refusals: list[Refusal] = []
    for (handler, tls), served in by_server.items():
        command = contestant.command(build, handler, certificate if tls else None)
        refusals += _served(contestant.name, command, served, generator, core)
    return refusals


def _served(name: str, command: list[str], works: Sequence[Work], generator: Generator, core: int) -> list[Refusal]:
    """Each work once; one that fails gets a new server for those after it."""
    refusals: list[Refusal] = []
    waiting = list(works)
    while waiting:
        try:
            with running({name: command}, core) as servers:
                while waiting:
                    work = waiting[0]
                    generator.count(work, servers[name], max(work.connections, 50), PATIENCE)
                    waiting.pop(0)
        except Failure as exc:
            refusals.append(Refusal(waiting.pop(0), str(exc)))
        except BenchError as exc:
            # It does not start, and would not for the next one.
            return [*refusals, *(Refusal(work, str(exc)) for work in waiting)]
        if len(refusals) >= FAILURES:
            reason = f"not tried, because it failed {FAILURES} works before"
            return [*refusals, *(Refusal(work, reason) for work in waiting)]
    return refusals
