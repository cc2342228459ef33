"""The language between supervisor and roster: facts, which are past tense, and commands, which are imperative.

Values alone. What a fact leads to is decided in `roster.py`; how a command is done, in `parent/supervisor.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ExitCode
from ..events import Event
from .worker_state import Timing

# --- facts: what happened ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The supervisor is there, and holds its sockets."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker was forked."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """It could not be forked."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker says that it accepts."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerUnable:
    """A worker says why it cannot start; it is about to end."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerDraining:
    """A worker accepts no more."""

    worker: int


@dataclass(frozen=True, slots=True)
class RecycleRequested:
    """A worker has served enough, and why; it goes on serving until it is replaced."""

    worker: int
    reason: str


class Cause(enum.StrEnum):
    """What deaths are counted by. The first four are what the system says of one, the rest is what we know better."""

    EXIT = "exit"
    SIGNAL = "signal"
    CORE = "core"
    """By a signal that left a core, or would have, were cores switched on."""
    MEMORY = "memory"
    """Killed by the kernel, as its cgroup is out of memory."""
    HANG = "hang"
    BOOT = "boot"
    """It could not start, or not in time."""
    OVERDUE = "overdue"
    """It had not ended in time after its drain."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker's process has ended and has been reaped; `clean`: with exit status 0."""

    worker: int
    cause: str
    clean: bool = False
    kind: Cause = Cause.EXIT


@dataclass(frozen=True, slots=True)
class HeartbeatsRead:
    """Seconds since the loop of each worker last turned; those that have not beaten yet are missing."""

    ages: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """By a signal, `by` its name; `at_once`: without a drain."""

    by: str
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Every worker is to be replaced by one with today's code and certificates, which is as patient as `timing`."""

    by: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """So many workers more, or fewer."""

    by: str
    more: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Another supervisor has taken the sockets over, and serves."""


@dataclass(frozen=True, slots=True)
class SuccessorRolledBack:
    """It died while our workers were still draining."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened, but something may be due."""


Fact = (
    Started
    | Spawned
    | SpawnFailed
    | WorkerReady
    | WorkerUnable
    | WorkerDraining
    | RecycleRequested
    | WorkerDied
    | HeartbeatsRead
    | StopAsked
    | ReloadAsked
    | ScaleAsked
    | HandedOver
    | SuccessorRolledBack
    | TimePassed
)

# --- commands: what to do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork `worker` of `generation` for `slot`. Answered by Spawned or SpawnFailed before any other fact, as a fork is
    not awaited."""

    worker: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask a worker to stop accepting and to end when its connections have ended (SIGTERM). Once for each worker."""

    worker: int


@dataclass(frozen=True, slots=True)
class ReadHeartbeats:
    """Look at the scoreboard. Answered by HeartbeatsRead at once."""


@dataclass(frozen=True, slots=True)
class Dump:
    """Ask a worker for the stacks of its threads, which it gives also when its loop hangs."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker now (SIGKILL)."""

    worker: int


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Tell who observes."""

    event: Event


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Every worker accepts, for the first time."""

    workers: int


@dataclass(frozen=True, slots=True)
class Finish:
    """No worker is left: end with `code`; `reason` is for the person who started the program."""

    code: ExitCode
    reason: str = ""


Command = Spawn | Drain | ReadHeartbeats | Dump | Kill | EmitEvent | AnnounceReady | Finish
