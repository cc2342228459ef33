"""Medians, ratios and verdicts, from lists of what each round measured. Pure: numbers in, numbers out.

A round in which something failed is None. A ratio is taken in each round, in which both sides met the same weather,
and its median is the result: on a shared machine some rounds are dearer than others for every contestant, and the
ratio of two medians may then be one that hardly any round has seen.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Rounds = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, with the least and the most of them."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """One side divided by the other, for each round that has both."""

    rounds: tuple[float, ...]

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def least(self) -> float:
        return min(self.rounds)

    @property
    def most(self) -> float:
        return max(self.rounds)


def spread(values: Rounds) -> Spread | None:
    """Of the rounds that have a value; None if none has."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def ratio(ours: Rounds, theirs: Rounds) -> Ratio | None:
    """`ours` over `theirs`, over the rounds that have both; None if there is none.

    Raises ValueError for lists of different lengths: they are not of the same run.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None and b > 0]
    if not pairs:
        return None
    return Ratio(tuple(a / b for a, b in pairs))


def split(cpu: Rounds, user: Rounds) -> tuple[float, float] | None:
    """The median of `cpu`, divided as all rounds together were: the user part, and the rest; None if nothing is known.

    A single round has too few of the kernel's samples to be divided by them.
    """
    pairs = [(a, b) for a, b in zip(cpu, user, strict=True) if a is not None and b is not None]
    whole = sum(a for a, _ in pairs)
    if whole <= 0:
        return None
    middle = statistics.median(a for a, _ in pairs)
    share = sum(b for _, b in pairs) / whole
    return middle * share, middle * (1 - share)


def growth(few: Rounds, many: Rounds) -> Rounds:
    """Return how much more each round measured for many than for few: 1.2 is 20 % more."""
    return [b / a if a is not None and b is not None and a > 0 else None for a, b in zip(few, many, strict=True)]


def verdict(found: Ratio | None, limit: float) -> str:
    """`met` or `missed`, by the median; where single rounds say otherwise, how many met it."""
    if found is None:
        return "not measured"
    met = sum(each <= limit for each in found.rounds)
    text = "met" if found.value <= limit else "missed"
    return text if met in (0, len(found.rounds)) else f"{text} ({met} of {len(found.rounds)} rounds met it)"
