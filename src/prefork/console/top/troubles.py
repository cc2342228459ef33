"""The page of what went wrong: exits of workers, reloads, certificates, and what happened while the view was open.

Pure: a snapshot becomes lines.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...text import count_of
from . import figures
from .facts import Slot, Snapshot
from .lines import EMPTY, Line, Tone, block, fit, plain, quiet

_DAY = 86_400
#: Days before its end from which a certificate is a warning, and from which it is bad. Alerts use the same.
CERTIFICATE_SOON, CERTIFICATE_URGENT = 30, 14
#: Slots with exits that are listed.
MAX_SLOTS = 8


def troubles(snapshot: Snapshot, seen: Sequence[str], width: int, height: int) -> list[Line]:
    """Return exactly `height` lines; `seen` is what happened since the view was opened, the latest last."""
    lines = [
        _title("Exits of workers", width),
        *_deaths(snapshot),
        *_exits(snapshot.slots),
        EMPTY,
        _title("Reloads", width),
        *_reloads(snapshot),
        EMPTY,
        _title("Certificates", width),
        *_certificates(snapshot),
        EMPTY,
        _title("Since this view was opened", width),
        *([plain(f"  {line}") for line in reversed(seen)] or [quiet("  nothing has happened")]),
    ]
    return block([fit(line, width) for line in lines], height)


def _title(name: str, width: int) -> Line:
    return ((name.ljust(width), Tone.HEADING),)


def _deaths(snapshot: Snapshot) -> list[Line]:
    found = sorted(((cause, number) for cause, number in snapshot.deaths.items() if number), key=lambda each: -each[1])
    if not found:
        return [quiet("  no worker has died")]
    return [((f"  {figures.count(number):>5} ", Tone.BAD), (cause, Tone.PLAIN)) for cause, number in found]


def _exits(slots: Sequence[Slot]) -> list[Line]:
    """Return the last exit of the slots with the most of them."""
    found = sorted((slot for slot in slots if slot.last_exit), key=lambda slot: (-slot.restarts, slot.slot))
    lines: list[Line] = [
        (
            (f"  slot {slot.slot:<4}", Tone.QUIET),
            (f"{count_of(slot.restarts, 'exit'):>9}, the last: ", Tone.QUIET),
            (slot.last_exit, Tone.PLAIN),
            ("" if slot.retry_in is None else f" (next try in {figures.age(slot.retry_in)})", Tone.WARNING),
        )
        for slot in found[:MAX_SLOTS]
    ]
    return (
        [*lines, quiet(f"  and {count_of(len(found) - MAX_SLOTS, 'slot')} more")] if len(found) > MAX_SLOTS else lines
    )


def _reloads(snapshot: Snapshot) -> list[Line]:
    reloads = snapshot.reloads
    if not reloads.ok and not reloads.failed and not reloads.result:
        return [quiet("  there was none")]
    counts = f"  {figures.count(reloads.ok)} succeeded, {figures.count(reloads.failed)} failed"
    when = "" if reloads.at is None else f" {figures.age(snapshot.clock - reloads.at)} ago"
    if reloads.result == "failed":
        return [plain(counts), ((f"  the last one failed{when}: {reloads.reason}", Tone.BAD),)]
    return [plain(f"{counts}, the last one{when}")]


def _certificates(snapshot: Snapshot) -> list[Line]:
    if not snapshot.certificates:
        return [quiet("  the server has none")]
    return [
        _certificate(file, (not_after - snapshot.clock) / _DAY)
        for file, not_after in sorted(snapshot.certificates, key=lambda each: each[1])
    ]


def _certificate(file: str, days: float) -> Line:
    if days < 0:
        return ((f"  expired {figures.age(-days * _DAY)} ago ", Tone.BAD), (file, Tone.PLAIN))
    tone = Tone.BAD if days < CERTIFICATE_URGENT else Tone.WARNING if days < CERTIFICATE_SOON else Tone.GOOD
    return ((f"  {figures.age(days * _DAY):>5} left ", tone), (file, Tone.PLAIN))
