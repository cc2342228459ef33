"""What a run has found, as plain data, and its form as JSON in both directions.

Nothing is measured, judged or shown here.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .generator import Sample

Column = list[float | None]


@dataclass
class Series:
    """One contestant at one work: an entry for each round, None where it failed. Times in microseconds."""

    rate: Column = field(default_factory=list)
    cpu_us: Column = field(default_factory=list)
    """The server's CPU time for one exchange."""
    user_us: Column = field(default_factory=list)
    """The part of it that is user time, as the kernel samples it: coarse for a single round."""
    p50_us: Column = field(default_factory=list)
    p99_us: Column = field(default_factory=list)
    p999_us: Column = field(default_factory=list)
    generator_busy: Column = field(default_factory=list)
    """How much of its core the generator used, 0 to 1: near 1 it was the generator that set the rate."""
    resumed: Column = field(default_factory=list)
    """The share of TLS sessions that were resumed."""
    failure: str = ""
    """What went wrong last, if anything did."""

    def add(self, sample: Sample | None, failure: str = "") -> None:
        """Add the result of one round."""
        self.failure = failure or self.failure
        for name, value in _columns(sample).items():
            getattr(self, name).append(value)


def _columns(sample: Sample | None) -> dict[str, float | None]:
    names = [each.name for each in dataclasses.fields(Series) if each.name != "failure"]
    if sample is None:
        return dict.fromkeys(names)
    sampled = sample.user_ns + sample.system_ns
    user = sample.user_ns / sampled if sampled else 0.0
    values = {
        "rate": sample.rate,
        "cpu_us": sample.cpu_us,
        "user_us": sample.cpu_us * user,
        "p50_us": sample.p50_ns / 1000,
        "p99_us": sample.p99_ns / 1000,
        "p999_us": sample.p999_ns / 1000,
        "generator_busy": sample.generator_cpu_ns / 1e9 / sample.seconds,
        "resumed": sample.resumed / sample.handshakes if sample.handshakes else 0.0,
    }
    return {name: float(f"{values[name]:.5g}") for name in names}


@dataclass
class Memory:
    """What one contestant holds, in bytes; None: not measured."""

    base: int | None = None
    """Resident after the warm-up, with no connection open."""
    plain: float | None = None
    """Resident, for each idle connection."""
    tls: float | None = None
    connections: int = 0
    """How many there were."""
    failure: str = ""


@dataclass
class Command:
    """The figures of `prefork serve` itself, on one loop."""

    start_seconds: list[float] = field(default_factory=list)
    """From starting the command with 2 workers to READY."""
    resident: dict[str, int] = field(default_factory=dict)
    """Bytes of `supervisor` and `worker`, with 1 worker."""
    proportional: dict[str, int] = field(default_factory=dict)
    """The same, shared pages divided by those who share them."""


@dataclass
class Results:
    """The results of one run of the benchmark."""

    environment: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    works: dict[str, dict[str, Series]] = field(default_factory=dict)
    """By the names of work and contestant."""
    memory: dict[str, Memory] = field(default_factory=dict)
    commands: dict[str, Command] = field(default_factory=dict)
    """By loop."""
    redis: dict[str, dict[str, Series]] = field(default_factory=dict)
    """By command and server, with only `rate` and `cpu_us`."""
    missing: list[str] = field(default_factory=list)
    """What was left out of this run, and why."""

    @property
    def python(self) -> str:
        """The Python that it ran on, as `3.13`. Raises ValueError if the environment does not say so."""
        found = re.search(r"\b\d+\.\d+", self.environment.get("Python", ""))
        if found is None:
            raise ValueError("the environment names no Python")
        return found[0]

    def column(self, work: str, contestant: str, name: str) -> Sequence[float | None]:
        """One column of a series; empty if it was not measured."""
        series = self.works.get(work, {}).get(contestant)
        return getattr(series, name) if series is not None else []

    def to_json(self) -> str:
        """As text, a line for each list of numbers."""
        return _dump(dataclasses.asdict(self), 0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """The opposite. Raises ValueError, KeyError or TypeError for what is no such text."""
        data = json.loads(text)
        return cls(
            environment=data["environment"],
            rounds=data["rounds"],
            works=_tables(data["works"]),
            memory={name: Memory(**each) for name, each in data["memory"].items()},
            commands={name: Command(**each) for name, each in data["commands"].items()},
            redis=_tables(data["redis"]),
            missing=data["missing"],
        )


def _tables(data: dict[str, dict[str, Any]]) -> dict[str, dict[str, Series]]:
    return {outer: {inner: Series(**each) for inner, each in table.items()} for outer, table in data.items()}


def _dump(value: object, depth: int) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(key)}: {_dump(each, depth + 1)}" for key, each in value.items())
    return f"{{\n{inner}\n{' ' * depth}}}"
