"""Which faults there are: a role, a system call, an error, and which call of that name fails.

Pure: reads lines of a trace, and takes a sample. How a case is run is in `scenario.py`.
"""

from __future__ import annotations

import enum
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errnos import ERRORS

#: Calls of one name in one role that are made to fail, at the most: the first two, the last, and some between.
MOST_POSITIONS = 8
_CALL = re.compile(r"([a-z_0-9]+)\(")
#: The command imports its own module, and then looks at the standard descriptors: what was before is Python's start.
_IMPORTED, _BEGUN = re.compile(r'openat\(.*"[^"]*/cli/(?:__pycache__/)?main\.'), re.compile(r"(?:new)?fstat(?:at)?\(0,")


class Role(enum.StrEnum):
    """The process whose calls fail."""

    SUPERVISOR = "supervisor"
    """From its first own call to its end."""
    WORKER = "worker"
    """The first worker, of a streams service, from the return of fork on."""
    PROTOCOL = "protocol"
    """The same of a protocol service."""
    SUCCESSOR = "successor"
    """The supervisor that takes over in an upgrade, from the return of fork on, without Python's start."""
    PREDECESSOR = "predecessor"
    """The supervisor that is asked for an upgrade, from then on."""


@dataclass(frozen=True, order=True, slots=True)
class Case:
    """The `when`-th `call` of `role` fails with `error`."""

    role: Role
    call: str
    error: str
    when: int

    def __str__(self) -> str:
        return f"{self.role}: {self.call} {self.error}, call {self.when}"


def eligible(role: Role, trace: Sequence[str]) -> dict[str, list[int]]:
    """For each call of a trace of one process: the numbers, from 1, of those that are prefork's own."""
    skipped = _start_of_python(role, trace)
    numbers: dict[str, int] = defaultdict(int)
    found: dict[str, list[int]] = defaultdict(list)
    for position, line in enumerate(trace):
        if match := _CALL.match(line):
            numbers[match[1]] += 1
            if position not in skipped:
                found[match[1]].append(numbers[match[1]])
    return dict(found)


def _start_of_python(role: Role, trace: Sequence[str]) -> range:
    """The lines between exec and the command's own beginning: an error there is told by the loader, or by Python."""
    if role not in (Role.SUPERVISOR, Role.SUCCESSOR):
        return range(0)
    executed = next((i for i, line in enumerate(trace) if line.startswith("execve(")), -1)
    imported = next((i for i, line in enumerate(trace) if i > executed and _IMPORTED.match(line)), len(trace))
    begun = next((i for i, line in enumerate(trace) if i > imported and _BEGUN.match(line)), len(trace))
    return range(0 if role is Role.SUPERVISOR else executed + 1, begun)


def positions(numbers: Sequence[int], most: int = MOST_POSITIONS) -> list[int]:
    """The maximum number of them: the first two, the last, and some spread evenly between."""
    if len(numbers) <= most:
        return list(numbers)
    step = (len(numbers) - 2) / (most - 2)
    return [*numbers[:2], *(numbers[round(1 + step * i)] for i in range(1, most - 1))]


def all_cases(calls: Mapping[Role, Mapping[str, Sequence[int]]], only: Iterable[str] = ()) -> list[Case]:
    """Every case there is for these calls (of each role: the numbers by name)."""
    wanted = set(only)
    return [
        Case(role, call, error, when)
        for role, numbers in calls.items()
        for call in sorted(numbers)
        if call in ERRORS and (not wanted or call in wanted)
        for error in ERRORS[call].split()
        for when in positions(numbers[call])
    ]


def sample(cases: Iterable[Case], scale: float, seed: int) -> list[Case]:
    """A part of them (`scale`, up to 1), at least one, in an order in which every call of every role is tried soon."""
    dice = random.Random(seed)
    groups: dict[tuple[Role, str], list[Case]] = defaultdict(list)
    for case in sorted(cases):
        groups[case.role, case.call].append(case)
    for group in groups.values():
        dice.shuffle(group)
    ranked = [(rank, dice.random(), case) for group in groups.values() for rank, case in enumerate(group)]
    ordered = [case for _, _, case in sorted(ranked)]
    return ordered[: max(1, round(len(ordered) * min(1.0, scale)))]
