"""End connections of a running server: those of peers, or one by its id.

`core/kicking.py` decides which peers are meant; the workers do it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..core.console_protocol import ConsoleRequest, WorkerRow, count_in
from .servers import Answer, Attachment, WorkerLink

#: Seconds that a worker has to begin: longer than for a look, because one that is only late would kick all the same.
KICK_TIMEOUT = 1.0


@dataclass(frozen=True, slots=True)
class Kicked:
    """What became of a kick."""

    count: int
    """Connections that were aborted."""
    silent: list[int]
    """The slots of workers that did not answer; they may still do it."""


class AmbiguousIdError(ValueError):
    """Raised for an id that connections of two processes have: a worker that drains, and the one in its place."""


def kick_peers(attachment: Attachment, peers: Iterable[str], by: str) -> Kicked:
    """Abort the connections of peers at all workers. `by` is what the workers' log lines name."""
    workers = [each for each in attachment.workers if each.is_asked]
    return _kick(attachment, ConsoleRequest("kick", peers=tuple(peers), by=by), workers)


def kick_id(attachment: Attachment, identifier: str, by: str, pid: int | None = None) -> Kicked:
    """Abort one connection, named SLOT-N, of the process `pid` if that is given.

    Raises ValueError for what is no id, AmbiguousIdError if connections of two processes have it.
    """
    slot, number = parse_id(identifier)
    workers = [each for each in attachment.workers if each.is_asked and each.slot == slot]
    workers = [each for each in workers if pid is None or each.pid == pid]
    if len(workers) > 1:
        answers = attachment.ask(ConsoleRequest("connections"), workers)
        having = [worker for worker, answer in answers.items() if _find(answer.rows, number)]
        if len(having) > 1:
            pids = " and ".join(str(each.pid) for each in having)
            raise AmbiguousIdError(f"{identifier}: processes {pids} have one each; name it by its peer")
        workers = having
    return _kick(attachment, ConsoleRequest("kick", numbers=(number,), by=by), workers)


def parse_id(text: str) -> tuple[int, int]:
    """Return the slot and the number of an id. Raises ValueError for any other text."""
    slot, dash, number = text.partition("-")
    if not (dash and slot.isascii() and slot.isdigit() and number.isascii() and number.isdigit() and len(text) < 30):
        raise ValueError(f"{text!r} is no id: expected SLOT-N, as prefork connections shows it")
    return int(slot), int(number)


def _find(rows: Iterable[WorkerRow], number: int) -> bool:
    return any(each.number == number for each in rows)


def _kick(attachment: Attachment, request: ConsoleRequest, workers: list[WorkerLink]) -> Kicked:
    answers = attachment.ask(request, workers, first=KICK_TIMEOUT)
    count, silent = 0, set()
    for worker in workers:
        kicked = _kicked_by(answers.get(worker))
        if kicked is None:
            silent.add(worker.slot)
        count += kicked or 0
    return Kicked(count, sorted(silent))


def _kicked_by(answer: Answer | None) -> int | None:
    if answer is None or answer.end is None:
        return None
    try:
        return count_in(answer.end, "kicked")
    except ValueError:
        return None
