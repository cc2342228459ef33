"""Which core the server gets, and which the generator.

Choosing is a pure function of what the kernel says; asking the kernel is the only other thing here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import BenchError


@dataclass(frozen=True, slots=True)
class Cores:
    """The CPUs of server and generator, by number."""

    server: int
    generator: int


def choose(siblings: Mapping[int, frozenset[int]]) -> Cores:
    """From the usable CPUs and, for each, those that share its core (itself included).

    The server gets the last, as interrupts and daemons like the first ones; the generator the one before it that is on
    another core. Raises BenchError if there is only one CPU.
    """
    if len(siblings) < 2:
        raise BenchError("server and generator need a CPU each, and one is all there is (see taskset -pc $$)")
    server, *others = sorted(siblings, reverse=True)
    apart = [cpu for cpu in others if cpu not in siblings[server]]
    return Cores(server, (apart or others)[0])


def usable() -> dict[int, frozenset[int]]:
    """The CPUs this process may run on, each with those that share its core."""
    return {cpu: _siblings(cpu) for cpu in os.sched_getaffinity(0)}


def _siblings(cpu: int) -> frozenset[int]:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return frozenset({cpu})
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
