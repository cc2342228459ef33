"""A service's own numbers in a region of memory that other processes read, and what readers make of it.

Pure. The one writer only appends: a definition of a metric, then a series for each combination of its labels, whose
values then change in place. Readers take nothing on trust, because the region is the worker's.

An entry is one word (its kind, the number of bytes of its text, the number of its values), the text in whole words, and
the values, as doubles. The region's first word is the number of words in use. It is written last, so that a reader
finds whole entries only. The text is JSON: of a definition `[kind, name, help, labels, bounds]`, of a series
`[number of its definition, *label values]`.
"""

from __future__ import annotations

import enum
import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Words of a region: 64 KiB.
REGION_WORDS = 8192
WORD = 8
#: Bytes of one text, and characters of a help, a name and the value of a label.
MAX_TEXT = 4096
MAX_HELP, MAX_NAME, MAX_LABEL_VALUE = 500, 100, 100
MAX_LABELS = 8
MAX_BOUNDS = 64
#: Series of workers that are gone which are kept of one slot, and of all slots.
MAX_RETIRED = 2000
MAX_RETIRED_IN_ALL = 20_000
#: The label that says which slot a series is of, and that of the bounds of histograms.
RESERVED_LABELS = frozenset({"worker", "le"})
#: A service's names cannot be taken for prefork's.
RESERVED_PREFIX = "prefork_"
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_HEADER = struct.Struct("=BxHI")


class MetricKind(enum.StrEnum):
    """What a metric is, as OpenMetrics names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class _EntryKind(enum.IntEnum):
    DEFINITION = 1
    SERIES = 2


@dataclass(frozen=True, slots=True)
class Definition:
    """What a metric is; `bounds` are the upper bounds of the buckets of a histogram."""

    kind: MetricKind
    name: str
    """Of a counter without `_total`."""
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    help: str = field(default="", compare=False)

    @property
    def values(self) -> int:
        """The number of values of a series: a histogram has one for each bucket, and the sum of what was observed."""
        return len(self.bounds) + 2 if self.kind is MetricKind.HISTOGRAM else 1


@dataclass(frozen=True, slots=True)
class Series:
    """One combination of label values, and its values at one moment."""

    definition: Definition
    labels: tuple[str, ...]
    values: tuple[float, ...]


def problem_of(definition: Definition) -> str:
    """Return what is wrong with a definition; "" if nothing is."""
    name, bounds = definition.name, definition.bounds
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        return f"a name has letters, digits and underscores, at most {MAX_NAME}"
    if definition.kind is MetricKind.COUNTER and name.endswith("_total"):
        return "a counter is named without _total, which is added"
    if name.startswith(RESERVED_PREFIX):
        return f"names that begin with {RESERVED_PREFIX} are prefork's"
    if len(definition.labels) > MAX_LABELS or len(set(definition.labels)) < len(definition.labels):
        return f"up to {MAX_LABELS} labels are possible, each once"
    for label in definition.labels:
        if not _NAME.fullmatch(label) or label.startswith("__") or label in RESERVED_LABELS or len(label) > MAX_NAME:
            return f"a label has letters, digits and underscores, and is none of {', '.join(sorted(RESERVED_LABELS))}"
    if len(definition.help) > MAX_HELP:
        return f"the help has at most {MAX_HELP} characters"
    if len(bounds) > MAX_BOUNDS or not all(map(math.isfinite, bounds)) or list(bounds) != sorted(set(bounds)):
        return f"the bounds are up to {MAX_BOUNDS} finite numbers that grow"
    if (definition.kind is MetricKind.HISTOGRAM) != bool(bounds):
        return "a histogram has bounds, and no other metric has"
    return ""


class Writer:
    """Appends entries to a region of REGION_WORDS words. `words` and `values` are the same memory, as two types."""

    def __init__(self, words: Any, values: Any) -> None:
        self._words = words
        self.values = values
        """The region as doubles: a series is changed here, at the position that `add_series` returned."""
        self._used = 1
        self._definitions = 0
        words[0] = self._used

    def define(self, definition: Definition) -> int | None:
        """Append a definition, and return its number; None if there is no room."""
        kind, name, help = definition.kind, definition.name, definition.help
        text = json.dumps([kind, name, help, definition.labels, definition.bounds])
        if self._append(_EntryKind.DEFINITION, text, 0) is None:
            return None
        self._definitions += 1
        return self._definitions - 1

    def add_series(self, number: int, definition: Definition, labels: Sequence[str]) -> int | None:
        """Append a series of the definition with this number; return the position of its values. None: no room."""
        return self._append(_EntryKind.SERIES, json.dumps([number, *labels]), definition.values)

    def _append(self, kind: _EntryKind, text: str, count: int) -> int | None:
        data = text.encode()
        length = -(-len(data) // WORD)
        end = self._used + 1 + length + count
        if len(data) > MAX_TEXT or end > REGION_WORDS:
            return None
        padded = _HEADER.pack(kind, len(data), count) + data.ljust(length * WORD, b"\0")
        for offset, (word,) in enumerate(struct.iter_unpack("=q", padded)):
            self._words[self._used + offset] = word
        at = end - count
        for position in range(at, end):
            self.values[position] = 0.0
        self._used = end
        self._words[0] = end
        return at


# --- reading ----------------------------------------------------------------------------------------------------------


def read_region(data: bytes) -> list[Series]:
    """Return the series in a copy of a region, up to the first entry that cannot be right. Raises nothing."""
    found: list[Series] = []
    try:
        for series in _series(data):
            # One by one, because what comes before an entry that raises counts.
            found.append(series)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, struct.error, OverflowError):
        return found
    return found


def _series(data: bytes) -> Iterator[Series]:
    definitions: list[Definition] = []
    seen: set[tuple[Definition, tuple[str, ...]]] = set()
    for kind, text, values in _entries(data):
        content = json.loads(text)
        if kind == _EntryKind.DEFINITION:
            definitions.append(_definition(*content))
            continue
        number, *labels = content
        if type(number) is not int or not 0 <= number < len(definitions):
            raise ValueError(number)
        definition = definitions[number]
        key = definition, tuple(map(_label, labels))
        if len(labels) != len(definition.labels) or len(values) != definition.values or key in seen:
            raise ValueError(labels)
        seen.add(key)
        if _is_possible(definition, values):
            yield Series(definition, key[1], values)


def _entries(data: bytes) -> Iterator[tuple[int, bytes, tuple[float, ...]]]:
    position = WORD
    while position < len(data):
        kind, length, count = _HEADER.unpack_from(data, position)
        start = position + WORD
        values_at = start + -(-length // WORD) * WORD
        position = values_at + count * WORD
        if position > len(data) or length > MAX_TEXT or count > MAX_BOUNDS + 2:
            raise ValueError(position)
        yield kind, data[start : start + length], struct.unpack_from(f"={count}d", data, values_at)


def _definition(kind: str, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]) -> Definition:
    if type(help) is not str or type(name) is not str or not all(type(label) is str for label in labels):
        raise TypeError(name)
    found = Definition(MetricKind(kind), name, tuple(labels), tuple(map(float, bounds)), clean(help))
    if problem_of(found):
        raise ValueError(name)
    return found


def _label(value: object) -> str:
    if type(value) is not str or len(value) > MAX_LABEL_VALUE:
        raise ValueError(value)
    return clean(value)


def clean(text: str) -> str:
    """Return a text that can be encoded: a surrogate without its pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _is_possible(definition: Definition, values: Sequence[float]) -> bool:
    counts = values[:-1] if definition.kind is MetricKind.HISTOGRAM else values
    signed = definition.kind is MetricKind.GAUGE
    if not all(map(math.isfinite, values)):
        return False
    # A fraction of an observation is an error to those who read buckets.
    whole = definition.kind is not MetricKind.HISTOGRAM or all(map(float.is_integer, counts))
    return whole and (signed or all(count >= 0 for count in counts))


# --- adding up --------------------------------------------------------------------------------------------------------


class RetiredSeries:
    """What the workers of each slot that are gone have counted. Gauges are forgotten: what they measured is gone."""

    def __init__(self) -> None:
        self._count = 0
        self._by_slot: defaultdict[int, dict[tuple[Definition, tuple[str, ...]], tuple[float, ...]]] = defaultdict(dict)

    def add(self, slot: int, series: Sequence[Series]) -> None:
        """Add the last values of a worker. Beyond the two bounds new series are dropped."""
        kept = self._by_slot[slot]
        for each in series:
            key = each.definition, each.labels
            if each.definition.kind is MetricKind.GAUGE:
                continue
            if key in kept:
                kept[key] = add_values(kept[key], each.values)
            elif len(kept) < MAX_RETIRED and self._count < MAX_RETIRED_IN_ALL:
                self._count += 1
                kept[key] = each.values

    def describe(self) -> list[list[Any]]:
        """Return plain values, from which `series_of` makes series again: each the slot, and what `Series` has."""
        return [
            [slot, [each.kind, each.name, each.help, each.labels, each.bounds], labels, values]
            for slot, kept in self._by_slot.items()
            for (each, labels), values in kept.items()
        ]


def series_of(described: Sequence[Any]) -> tuple[int, Series]:
    """Return a slot and one of its series, from what `describe` made of it. Raises ValueError or TypeError."""
    slot, definition, labels, values = described
    return int(slot), Series(_definition(*definition), tuple(labels), tuple(map(float, values)))


def add_values(one: Sequence[float], two: Sequence[float]) -> tuple[float, ...]:
    """Return the sums of the values of two series of one definition."""
    return tuple(first + second for first, second in zip(one, two, strict=True))
