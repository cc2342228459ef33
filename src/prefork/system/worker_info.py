"""Which worker this process is. State of the process by its nature, set at most once, right after the fork.

Standard library only, because the public functions must cost nothing to import. Set by `fork_processes`, and by a
worker of `prefork serve` before it loads the service.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker of `prefork serve`, as `current_worker()` returns it."""

    slot: int
    """From 0 to one less than the number of workers. A worker that replaces another has the same slot."""
    generation: int
    """From 0. Each reload starts the next generation; a replacement for a worker that died is of the current one."""


_task_id: int | None = None
_worker: WorkerInfo | None = None


def task_id() -> int | None:
    """Return the number of this child of `fork_processes`, or the slot of this worker of `prefork serve`, from 0.

    Return None in every other process, a supervisor included.
    """
    return _task_id


def current_worker() -> WorkerInfo | None:
    """Return the slot and the generation of this worker of `prefork serve`; None in every other process."""
    return _worker


def set_task_id(number: int) -> None:
    global _task_id
    _task_id = number


def set_worker(slot: int, generation: int) -> None:
    global _worker
    _worker = WorkerInfo(slot, generation)
    set_task_id(slot)


def describe_role() -> str:
    """Return what this process is, as messages say it: `child 0 of an earlier call`; "" when it is neither."""
    if _worker is not None:
        return f"worker {_worker.slot} of prefork serve"
    return "" if _task_id is None else f"child {_task_id} of an earlier call"
