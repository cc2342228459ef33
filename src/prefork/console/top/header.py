"""The lines above every page: what the server is, and how much of it is used.

Pure: a snapshot and its rates become lines.
"""

from __future__ import annotations

from . import figures
from .facts import Snapshot
from .lines import Line, Tone, join, plain, spread, width_of
from .rates import Rates

#: Shares of a limit from which it is a warning, and from which it is bad. Alerts use the same.
NEARLY_FULL, FULL = 0.8, 0.95
_BAR_WIDTH = 12
#: With fewer characters than this a target says nothing.
_MIN_TARGET = 8


def header(snapshot: Snapshot, rates: Rates, note: Line, width: int) -> list[Line]:
    """Return three lines; `note` is what the view itself has to say, such as that it is paused."""
    state = note or _state(snapshot)
    return [
        spread(_identity(snapshot, width - width_of(state) - 2), state, width),
        spread(_capacity(snapshot, rates, width), _queue(snapshot), width),
        spread(_traffic(snapshot, rates, width), _lag(snapshot), width),
    ]


def _identity(snapshot: Snapshot, width: int) -> Line:
    """Return what the server is. Where it is narrow, the target is cut or left out, then the pid."""
    name: Line = ((f"prefork {snapshot.version}".rstrip(), Tone.STRONG),)
    pid, up = _named("pid", str(snapshot.pid)), _named("up", figures.age(snapshot.uptime))
    generation = _named("gen", str(snapshot.generation))
    room = width - width_of(join((name, pid, up, generation))) - 2
    if room < -2:
        return join((name, up, generation))
    target = plain(figures.clip(snapshot.target, room)) if room >= _MIN_TARGET else ()
    return join((name, target, pid, up, generation))


def _state(snapshot: Snapshot) -> Line:
    """Return the state in the words that matter most now."""
    words = [
        ("draining", Tone.WARNING, snapshot.state not in ("", "serving", "starting", "lame_duck")),
        ("lame duck", Tone.WARNING, snapshot.state == "lame_duck"),
        ("starting", Tone.ACCENT, snapshot.state == "starting"),
        ("suspended", Tone.WARNING, snapshot.suspended),
        ("upgrading", Tone.ACCENT, snapshot.upgrading),
        (f"supervisor {snapshot.predecessor} drains", Tone.ACCENT, snapshot.predecessor is not None),
        ("reloading", Tone.ACCENT, snapshot.reloading),
        ("last reload failed", Tone.BAD, snapshot.reloads.result == "failed" and not snapshot.reloading),
    ]
    found = [((text, tone),) for text, tone, holds in words if holds]
    return join(found) or (("serving", Tone.GOOD),)


def _capacity(snapshot: Snapshot, rates: Rates, width: int) -> Line:
    ready = f"{snapshot.ready}/{snapshot.workers_target}"
    tone = Tone.PLAIN if snapshot.ready >= snapshot.workers_target else Tone.BAD
    return join(
        (
            (("ready ", Tone.QUIET), (ready, tone)),
            _used("connections", snapshot.open, snapshot.limit, width >= 110),
            _named("accepts/s", figures.rate(rates.total.accepted)),
        ),
        "   ",
    )


def _used(name: str, used: int, limit: int | None, with_bar: bool) -> Line:
    """Return how much of a limit is used, in a tone that says whether that is too much."""
    if not limit:
        return _named(name, figures.count(used))
    part = used / limit
    tone = Tone.PLAIN if part < NEARLY_FULL else Tone.WARNING if part < FULL else Tone.BAD
    text = f"{figures.count(used)}/{figures.count(limit)}"
    drawn = ((f" {figures.bar(used, limit, _BAR_WIDTH)}", tone),) if with_bar else ()
    return ((f"{name} ", Tone.QUIET), (text, tone), *drawn)


def _queue(snapshot: Snapshot) -> Line:
    if not snapshot.queues:
        return ()
    part = max((queue.waiting / queue.limit for queue in snapshot.queues if queue.limit), default=0.0)
    tone = Tone.PLAIN if part < 0.5 else Tone.WARNING if part < FULL else Tone.BAD
    text = f"{figures.count(snapshot.waiting)}/{figures.count(snapshot.queue_limit)}"
    return (("queue ", Tone.QUIET), (text, tone))


def _traffic(snapshot: Snapshot, rates: Rates, width: int) -> Line:
    total = rates.total
    return join(
        (
            _named("rx/s", figures.size(total.received)),
            _named("tx/s", figures.size(total.sent)),
            _alarming("refused/s", total.refused),
            _alarming("failures/s", total.failures),
            _named("cpu", figures.share(total.cpu)),
        ),
        "   " if width >= 100 else "  ",
    )


def _lag(snapshot: Snapshot) -> Line:
    lags = [worker.lag for worker in snapshot.workers if worker.lag is not None]
    return _named("lag", figures.delay(max(lags))) if lags else ()


def _named(name: str, value: str) -> Line:
    return ((f"{name} ", Tone.QUIET), *plain(value))


def _alarming(name: str, value: float | None) -> Line:
    return ((f"{name} ", Tone.QUIET), (figures.rate(value), Tone.BAD if value else Tone.PLAIN))
