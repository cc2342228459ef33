"""What the tasks of a running server's workers wait for, and where the threads of a worker that hangs are.

The workers tell it themselves; of one that does not answer, the supervisor has the stacks of its threads written.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.console_protocol import ConsoleRequest, Stack
from ..core.control_protocol import ALL_SLOTS, Request
from ..errors import ServiceError
from ..text import escape_ascii
from .servers import Attachment, WorkerLink, ask_supervisor

#: Lines of one worker's threads that are shown, and the characters of each.
MAX_LINES = 400
_LINE_LIMIT = 256


@dataclass(slots=True)
class WorkerStacks:
    """The stacks of one worker."""

    worker: WorkerLink
    tasks: int = 0
    stacks: list[Stack] = field(default_factory=list)
    stale: bool = False
    """The worker did not answer: there are stacks of its threads only."""
    lines: list[str] = field(default_factory=list)
    """Those of a stale worker, as Python writes them at a signal."""


def read_stacks(control: str, attachment: Attachment, slot: int | None = None) -> list[WorkerStacks]:
    """Return the stacks of the worker in a slot, or of all. Programs are left out: their tasks are their own."""
    workers = [each for each in attachment.workers if each.is_asked and slot in (None, each.slot)]
    answers = attachment.ask(ConsoleRequest("stacks"), workers)
    told = {worker: answer for worker, answer in answers.items() if answer.is_whole}
    silent = {each.slot for each in workers if each not in told}
    dumped = _dump(control, min(silent) if len(silent) == 1 else ALL_SLOTS) if silent else {}
    found = []
    for worker in sorted(workers, key=lambda each: (each.slot, each.pid)):
        answer = told.get(worker)
        if answer is None:
            found.append(WorkerStacks(worker, stale=True, lines=dumped.get(worker.pid, [])))
        else:
            tasks = sum(each.tasks for each in answer.stacks if not each.thread)
            found.append(WorkerStacks(worker, tasks, answer.stacks))
    return found


def _dump(control: str, slot: int) -> dict[int, list[str]]:
    """Return the lines that the workers of a slot, or of ALL_SLOTS, have written about their threads, by pid."""
    try:
        reply = ask_supervisor(control, Request("dump", worker=slot))
    except ServiceError:
        # It has ended meanwhile.
        return {}
    return {
        int(each["pid"]): [escape_ascii(line, _LINE_LIMIT) for line in each["lines"][:MAX_LINES]]
        for each in reply["workers"]
    }
