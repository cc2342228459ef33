"""The table of connections, and what the kernel knows of the selected one.

Pure. The columns are in the order of the screen; `rank` says which go first where it is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...text import escape_ascii
from . import figures
from .facts import Connection
from .lines import Line, Span, Tone, plain, wrap
from .table import Column

#: Unsent bytes above which a peer is slow: reads of its connection wait from here on.
SLOW = 1024 * 1024
_TONES = {
    "open": Tone.PLAIN,
    "handshake": Tone.ACCENT,
    "closing": Tone.QUIET,
    "lingering": Tone.QUIET,
    "unknown": Tone.WARNING,
}


def texts_of(row: Connection) -> Sequence[tuple[str, str]]:
    """Return the names and values that the filter looks at."""
    return [
        ("id", row.id),
        ("peer", row.peer),
        ("listener", row.listener),
        ("worker", "" if row.worker is None else str(row.worker)),
        ("pid", "" if row.pid is None else str(row.pid)),
        ("phase", row.phase),
        ("tls", row.tls),
        ("stale", "yes" if row.stale else "no"),
    ]


def describe(row: Connection) -> str:
    """Return which connection this is, as a question names it."""
    name = f"{row.id}, " if row.id else ""
    return f"{name}{row.peer} on worker {'-' if row.worker is None else row.worker}, {row.phase} {figures.age(row.age)}"


def _port(listener: str) -> str:
    """Return what tells one listener from another in few characters: the port of an address, or the end of a path."""
    name = listener.split(" ")[0]
    return f":{name.rpartition(':')[2]}" if ":" in name and "/" not in name else name


def _phase(row: Connection) -> Span:
    return row.phase + (" ?" if row.stale and len(row.phase) < 8 else ""), _TONES.get(row.phase, Tone.WARNING)


def _unsent(row: Connection) -> Span:
    return figures.size(row.unsent), Tone.WARNING if row.unsent and row.unsent >= SLOW else Tone.PLAIN


def _dim(text: str, row: Connection) -> Span:
    return text, Tone.QUIET if row.stale else Tone.PLAIN


COLUMNS: Sequence[Column[Connection]] = (
    Column("ID", 8, lambda row: _dim(row.id or "-", row), lambda row: _natural(row.id), "N", extra=6, left=True),
    Column("PEER", 21, lambda row: _dim(row.peer, row), lambda row: row.peer, "P", extra=26, left=True),
    Column("LISTEN", 6, lambda row: _port(row.listener), lambda row: row.listener, rank=8, left=True),
    Column("WORKER", 6, lambda row: "-" if row.worker is None else str(row.worker), lambda row: row.worker, "W", 9),
    Column("PHASE", 9, _phase, lambda row: row.phase, "S", 5, left=True),
    Column("AGE", 5, lambda row: figures.age(row.age), lambda row: row.age, "G", 3, largest=True),
    Column("IDLE", 5, lambda row: figures.age(row.idle), lambda row: row.idle, "I", 4, largest=True),
    Column("RX", 4, lambda row: figures.size(row.rx), lambda row: row.rx, "R", largest=True),
    Column("TX", 4, lambda row: figures.size(row.tx), lambda row: row.tx, "T", largest=True),
    Column("UNSENT", 6, _unsent, lambda row: row.unsent, "U", 6, largest=True),
    Column("TLS", 3, lambda row: row.tls.removeprefix("TLSv") or "-", lambda row: row.tls or None, "L", 7, left=True),
)


def _natural(name: str) -> tuple[int, ...]:
    """Return the numbers of an ID, so that 2-9 comes before 2-10."""
    return tuple(int(part) if part.isdecimal() and part.isascii() else -1 for part in name.split("-"))


#: What the kernel tells of a connection: the key, what it is called here, and how it is shown.
_FACTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("rtt", "rtt", figures.delay),
    ("rtt_variation", "+-", figures.delay),
    ("retransmissions", "retransmitted", figures.count),
    ("congestion_window", "window", figures.count),
    ("receive_queue", "not read", figures.size),
    ("send_queue", "not acknowledged", figures.size),
    ("not_sent", "not sent", figures.size),
    ("drops", "dropped", figures.count),
)


def kernel_lines(selected: Connection | None, width: int) -> list[Line]:
    """Return what the kernel knows of the selected connection, in words."""
    if selected is None:
        return []
    parts: list[Line] = [((describe(selected), Tone.STRONG),)]
    if selected.stale:
        parts.append((("its worker does not answer: from the kernel", Tone.WARNING),))
    facts = selected.facts()
    if facts:
        parts += [fact for key, name, show in _FACTS if (fact := _fact(facts.get(key), name, show))]
        parts.append(_limited_by(facts.get("limited_by")))
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
