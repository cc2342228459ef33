"""The table of connections, and what the kernel knows of the selected one.

Pure. The columns are in the order of the screen; `rank` says which go first where it is narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    Column("LISTEN", 6, lambda row: _port(row.listener), lambda row: row.listener, rank=1, left=True),
    Column("WORKER", 6, lambda row: "-" if row.worker is None else str(row.worker), lambda row: row.worker, "W", 2),
    Column("PHASE", 9, _phase, lambda row: row.phase, "S", left=True),
    Column("AGE", 5, lambda row: figures.age(row.age), lambda row: row.age, "G", largest=True),
    Column("IDLE", 5, lambda row: figures.age(row.idle), lambda row: row.idle, "I", largest=True),
    Column("RX", 4, lambda row: figures.size(row.rx), lambda row: row.rx, "R", largest=True),
    Column("TX", 4, lambda row: figures.size(row.tx), lambda row: row.tx, "T", largest=True),
    Column("UNSENT", 6, _unsent, lambda row: row.unsent, "U", largest=True),
    Column("TLS", 3, lambda row: row.tls.removeprefix("TLSv") or "-", lambda row: row.tls or None, "L", left=True),
)


def _natural(name: str) -> tuple[int, ...]:
    """Return the numbers of an ID, so that 2-9 comes before 2-10."""
    return tuple(int(part) if part.isdecimal() and part.isascii() else -1 for part in name.split("-"))


def _fact(value: object, name: str, show: Callable[[float], str]) -> Line:
    return ((f"{name} ", Tone.QUIET), *plain(show(value))) if isinstance(value, int | float) else ()


#: What the kernel tells of a connection: the key, what it is called here, and how it is shown.
_FACTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("rtt", "rtt", figures.delay),
    ("rttvar", "+-", figures.delay),
    ("retransmissions", "retransmitted", figures.count),
    ("cwnd", "window", figures.count),
    ("unacked", "in flight", figures.count),
    ("notsent", "not sent", figures.size),
    ("rqueue", "not read", figures.size),
    ("wqueue", "not acknowledged", figures.size),
    ("drops", "dropped", figures.count),
)


def kernel_lines(selected: Connection | None, facts: Mapping[str, Any] | None, width: int) -> list[Line]:
    """Return what the kernel knows of the selected connection, in words."""
    if selected is None:
        return []
    parts: list[Line] = [((describe(selected), Tone.STRONG),)]
    if selected.stale:
        parts.append((("its worker does not answer: from the kernel", Tone.WARNING),))
    if not facts:
        parts.append((("the kernel tells nothing of it", Tone.QUIET),))
        return wrap(parts, width)
    parts += [fact for key, name, show in _FACTS if (fact := _fact(facts.get(key), name, show))]
    limited = facts.get("limited_by")
    if isinstance(limited, str) and limited:
        parts.append((("limited by ", Tone.QUIET), (escape_ascii(limited, 32), Tone.WARNING)))
    return wrap(parts, width)
