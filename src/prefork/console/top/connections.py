"""The table of connections, and what the kernel knows of the selected one.

Pure. The columns are in the order of the screen; `rank` says which go first where it is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...text import escape_ascii
from ..joining import Row, facts_of
from . import figures
from .lines import Line, Span, Tone, plain, wrap
from .table import Column

#: Unsent bytes above which a peer is slow: reads of its connection wait from here on.
SLOW = 1024 * 1024
_TONES = {
    "open": Tone.PLAIN,
    "proxy": Tone.ACCENT,
    "handshake": Tone.ACCENT,
    "closing": Tone.QUIET,
    "lingering": Tone.QUIET,
    "unknown": Tone.WARNING,
}


def texts_of(row: Row) -> Sequence[tuple[str, str]]:
    """Return the names and values that the filter looks at."""
    return [
        ("id", row.id or ""),
        ("peer", row.peer),
        ("listener", row.listener),
        ("worker", str(row.worker)),
        ("pid", str(row.pid)),
        ("phase", row.phase),
        ("tls", row.tls or ""),
        ("proxy", row.proxy or ""),
        ("stale", "yes" if row.stale else "no"),
    ]


def key_of(row: Row) -> str:
    """Return what tells this connection from every other one."""
    return f"{row.pid} {row.id or row.peer} {row.listener}"


def _id_key(row: Row) -> tuple[int, int] | None:
    """Return the slot and the number of an ID, so that 2-9 comes before 2-10."""
    number = (row.id or "").rpartition("-")[2]
    return (row.worker, int(number)) if number.isdecimal() else None


def describe(row: Row) -> str:
    """Return which connection this is, as a question names it."""
    name = f"{row.id}, " if row.id else ""
    return escape_ascii(f"{name}{row.peer} on worker {row.worker}, {row.phase} {figures.age(row.age)}")


def _port(listener: str) -> str:
    """Return what tells one listener from another in few characters: the port of an address, or the end of a path."""
    name = listener.split(" ")[0]
    return f":{name.rpartition(':')[2]}" if ":" in name and "/" not in name else name


def _phase(row: Row) -> Span:
    return row.phase, Tone.QUIET if row.stale else _TONES.get(row.phase, Tone.WARNING)


def _unsent(row: Row) -> Span:
    return figures.size(row.unsent), Tone.WARNING if row.unsent and row.unsent >= SLOW else Tone.PLAIN


def _dim(text: str, row: Row) -> Span:
    return text, Tone.QUIET if row.stale else Tone.PLAIN


COLUMNS: Sequence[Column[Row]] = (
    Column("ID", 8, lambda row: _dim(row.id or "-", row), _id_key, "N", extra=6, left=True),
    Column("PEER", 21, lambda row: _dim(row.peer, row), lambda row: row.peer, "P", extra=18, left=True),
    Column("LISTEN", 6, lambda row: _port(row.listener), lambda row: row.listener, rank=8, left=True),
    Column("WORKER", 6, lambda row: str(row.worker), lambda row: row.worker, "W", 9),
    Column("PHASE", 9, _phase, lambda row: row.phase, "S", 5, left=True),
    Column("AGE", 5, lambda row: figures.age(row.age), lambda row: row.age, "G", 3, largest=True),
    Column("IDLE", 5, lambda row: figures.age(row.idle), lambda row: row.idle, "I", 4, largest=True),
    Column("RX", 4, lambda row: figures.size(row.rx), lambda row: row.rx, "R", largest=True),
    Column("TX", 4, lambda row: figures.size(row.tx), lambda row: row.tx, "T", largest=True),
    Column("UNSENT", 6, _unsent, lambda row: row.unsent, "U", 6, largest=True),
    Column("TLS", 3, lambda row: (row.tls or "-").removeprefix("TLSv"), lambda row: row.tls, "L", 7, left=True),
)


#: What the kernel tells of a connection: the key, what it is called here, and how it is shown.
_FACTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("retransmissions", "retransmitted", figures.count),
    ("congestion_window", "window", figures.count),
    ("receive_queue", "not read", figures.size),
    ("send_queue", "not acknowledged", figures.size),
    ("not_sent", "not sent", figures.size),
    ("drops", "dropped", figures.count),
)


def kernel_lines(selected: Row | None, width: int) -> list[Line]:
    """Return what the kernel knows of the selected connection, in words."""
    if selected is None:
        return []
    parts: list[Line] = [((describe(selected), Tone.STRONG),)]
    if selected.stale:
        parts.append((("its worker does not answer: from the kernel", Tone.WARNING),))
    facts = facts_of(selected.kernel)
    if facts:
        parts.append(
            (*_fact(facts.get("rtt"), "rtt", figures.delay), *_fact(facts.get("rtt_variation"), " +-", figures.delay))
        )
        parts.append(_limited_by(facts.get("limited_by")))
        parts += [fact for key, name, show in _FACTS if (fact := _fact(facts.get(key), name, show))]
    return wrap(parts, width)


def _fact(value: object, name: str, show: Callable[[float], str]) -> Line:
    return ((f"{name} ", Tone.QUIET), *plain(show(value))) if isinstance(value, int | float) else ()


def _limited_by(times: object) -> Line:
    """Return what sending waited for longest, and how many seconds; nothing if it never waited."""
    if not isinstance(times, Mapping):
        return ()
    waits = {name: value for name, value in times.items() if isinstance(value, int | float) and value > 0}
    if not waits:
        return ()
    longest = max(waits, key=lambda name: waits[name])
    name = escape_ascii(longest, 32).replace("_", " ")
    return (("limited by ", Tone.QUIET), (f"{name} {figures.delay(waits[longest])}", Tone.WARNING))
