"""A service's own numbers, on the same page as prefork's: `prefork.metrics.counter`, `gauge` and `histogram`.

In a worker they are in shared memory, where `--metrics` finds them, with the label `worker`, and where they outlive the
worker. In any other process they work as well, and nothing reads them. Nothing here talks to another process.
"""

from __future__ import annotations

import bisect
import math
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast, overload

from .core.service_metrics import (
    MAX_LABEL_VALUE,
    REGION_WORDS,
    WORD,
    Definition,
    MetricKind,
    Writer,
    clean,
    problem_of,
)
from .events import ServiceMetricsFull, log

__all__ = ["Counter", "Gauge", "Histogram", "Labelled", "counter", "gauge", "histogram"]

#: Upper bounds of the buckets of a histogram of seconds.
DEFAULT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Metric:
    """One series: where its values are. All threads of the process may change it."""

    __slots__ = ("_at", "_definition", "_labels", "_lock", "_values")

    def __init__(self, definition: Definition, labels: tuple[str, ...]) -> None:
        self._definition = definition
        self._labels = labels
        # Reentrant, because a signal handler may interrupt a change, and change the same series.
        self._lock = threading.RLock()
        self._at = 0
        self._values: Any = array("d", bytes(WORD * definition.values))

    def _move(self, values: Any, at: int) -> None:
        """Count in other memory from now on, from zero."""
        self._values, self._at = values, at


class Counter(_Metric):
    """A number that only grows, such as requests served; made by `counter`."""

    __slots__ = ()

    def inc(self, amount: float = 1) -> None:
        """Add `amount`. Raises ValueError if it is negative, or no finite number."""
        if not 0 <= amount < math.inf:
            raise ValueError("a counter only grows, by finite numbers")
        with self._lock:
            self._values[self._at] += amount

    @property
    def value(self) -> float:
        """What this process has counted."""
        return float(self._values[self._at])


class Gauge(_Metric):
    """A number that goes up and down, such as open sessions; made by `gauge`. It ends with its worker."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Replace what was set before."""
        self._values[self._at] = value

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which may be negative."""
        with self._lock:
            self._values[self._at] += amount

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount`, which may be negative."""
        self.inc(-amount)

    @property
    def value(self) -> float:
        """What this process has set."""
        return float(self._values[self._at])


class Histogram(_Metric):
    """How many observations were within each bound, such as seconds of a request; made by `histogram`."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Count one observation. Raises ValueError if it is no finite number."""
        if not math.isfinite(value):
            raise ValueError("an observation is a finite number")
        bounds = self._definition.bounds
        with self._lock:
            self._values[self._at + bisect.bisect_left(bounds, value)] += 1
            self._values[self._at + len(bounds) + 1] += value

    @property
    def count(self) -> int:
        """The number of observations of this process."""
        return int(sum(self._values[self._at : self._at + len(self._definition.bounds) + 1]))

    @property
    def sum(self) -> float:
        """The sum of the observations of this process."""
        return float(self._values[self._at + len(self._definition.bounds) + 1])


M = TypeVar("M", bound=_Metric)


class Labelled(Generic[M]):
    """A metric with labels; `labels` returns the series of some values. Made by `counter`, `gauge` and `histogram`."""

    def __init__(self, definition: Definition, make: Callable[[Definition, tuple[str, ...]], M]) -> None:
        self._definition = definition
        self._make: Callable[[Definition, tuple[str, ...]], M] = make
        self._series: dict[tuple[object, ...], M] = {}
        self._beyond: M | None = None

    def labels(self, *values: object) -> M:
        """Return the series of these values, in the order of the labels. Keep it, if it is used often.

        Values become text of at most 100 characters. Once the memory of the worker is full, further combinations are
        counted in one series that is not shown. Raises ValueError for a wrong number of values.
        """
        found = self._series.get(values)
        if found is None:
            found = self._add(values)
        return found

    def _add(self, values: tuple[object, ...]) -> M:
        expected = self._definition.labels
        if len(values) != len(expected):
            raise ValueError(f"the labels are {', '.join(expected)}")
        labels = tuple(clean(str(value))[:MAX_LABEL_VALUE] for value in values)
        with _registry.lock:
            if labels not in self._series:
                made = self._make(self._definition, labels)
                if not _registry.place(made):
                    self._beyond = self._beyond or made
                    return self._beyond
                self._series[labels] = made
            if values != labels and len(self._series) < 2 * REGION_WORDS:
                self._series[values] = self._series[labels]
            return self._series[labels]


def _named(kind: MetricKind, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]) -> Definition:
    if kind is MetricKind.COUNTER:
        name = name.removesuffix("_total")
    definition = Definition(kind, name, tuple(labels), tuple(map(float, bounds)), clean(help))
    problem = problem_of(definition)
    if problem:
        raise ValueError(f"{kind} {name}: {problem}")
    return definition


@overload
def counter(name: str, help: str) -> Counter: ...
@overload
def counter(name: str, help: str, labels: Sequence[str]) -> Labelled[Counter]: ...
def counter(name: str, help: str, labels: Sequence[str] = ()) -> Counter | Labelled[Counter]:
    """Return the counter `name`, with labels or without; the same one if it is asked for again.

    It is shown as `NAME_total`. Raises ValueError for what cannot be a name, a label or a help, and for a name that
    another metric has.
    """
    return _registry.metric(_named(MetricKind.COUNTER, name, help, labels, ()), Counter)


@overload
def gauge(name: str, help: str) -> Gauge: ...
@overload
def gauge(name: str, help: str, labels: Sequence[str]) -> Labelled[Gauge]: ...
def gauge(name: str, help: str, labels: Sequence[str] = ()) -> Gauge | Labelled[Gauge]:
    """Return the gauge `name`, as `counter` does. Two workers of one slot, as during a reload, are added up."""
    return _registry.metric(_named(MetricKind.GAUGE, name, help, labels, ()), Gauge)


@overload
def histogram(name: str, help: str, *, bounds: Sequence[float] = DEFAULT_BOUNDS) -> Histogram: ...
@overload
def histogram(
    name: str, help: str, labels: Sequence[str], bounds: Sequence[float] = DEFAULT_BOUNDS
) -> Labelled[Histogram]: ...
def histogram(
    name: str, help: str, labels: Sequence[str] = (), bounds: Sequence[float] = DEFAULT_BOUNDS
) -> Histogram | Labelled[Histogram]:
    """Return the histogram `name`, as `counter` does; `bounds` are the upper bounds of its buckets, which grow."""
    return _registry.metric(_named(MetricKind.HISTOGRAM, name, help, labels, bounds), Histogram)


class _Registry:
    """All metrics of this process, and the region of memory that they are in, if it is a worker."""

    def __init__(self) -> None:
        # Reentrant, because a handler of the log may have metrics of its own.
        self.lock = threading.RLock()
        self._metrics: dict[str, tuple[Definition, Any]] = {}
        self._numbers: dict[Definition, int | None] = {}
        self._placed: list[_Metric] = []
        self._writer: Writer | None = None
        self._full = False

    def metric(self, definition: Definition, make: Callable[[Definition, tuple[str, ...]], M]) -> M | Labelled[M]:
        with self.lock:
            known = self._metrics.get(definition.name)
            if known is not None:
                if known[0] != definition:
                    raise ValueError(f"{definition.name} is another metric already")
                # The class of a metric follows from its definition.
                return cast(M | Labelled[M], known[1])
            made: M | Labelled[M]
            if definition.labels:
                made = Labelled(definition, make)
            else:
                made = make(definition, ())
                self.place(made)
            self._metrics[definition.name] = definition, made
            return made

    def place(self, metric: _Metric) -> bool:
        """Give a series its place in the region. Return False, and say so once, if there is no room."""
        if self._writer is not None and not self._write(self._writer, metric):
            if not self._full:
                self._full = True
                log(ServiceMetricsFull(metric._definition.name))
            return False
        self._placed.append(metric)
        return True

    def _write(self, writer: Writer, metric: _Metric) -> bool:
        definition = metric._definition
        if definition not in self._numbers:
            self._numbers[definition] = writer.define(definition)
        number = self._numbers[definition]
        at = None if number is None else writer.add_series(number, definition, metric._labels)
        if at is None:
            return False
        metric._move(writer.values, at)
        return True

    def attach(self, writer: Writer) -> None:
        """Put all metrics into the region of a worker that was just forked; what its parent counted is not its own."""
        with self.lock:
            self._writer = writer
            placed, self._placed = self._placed, []
            for metric in placed:
                self.place(metric)


_registry = _Registry()


def attach(writer: Writer) -> None:
    """Keep the metrics of this process in a worker's region of shared memory from now on."""
    _registry.attach(writer)
