"""What the supervisor tells the roster (facts, in the past tense) and what it is told to do (commands, imperative).

Values only. `roster.py` decides which commands follow from a fact; `parent/supervisor.py` carries them out.

A fact names a worker by its `worker_id`, which is never used again, so that news of a dead worker cannot be taken for
news of its successor. An event or a log line names it by its slot, as an operator does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ExitCode
from ..events import Event
from .states import Timing


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was refused or has failed, in words for its sender."""

    reason: str


# --- facts: what happened ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The supervisor runs and has its sockets."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A worker was forked, and has this pid."""

    worker_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """A worker could not be forked."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker reports that it accepts connections."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class WorkerUnable:
    """A worker reports why it cannot start; it is about to end."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerWaits:
    """What a worker still has to do before it is ready, in words for the user."""

    worker_id: int
    missing: str


@dataclass(frozen=True, slots=True)
class WorkerStoppedAccepting:
    """A worker reports that it stopped accepting."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class RecycleRequested:
    """A worker is to be replaced, because of a recycling limit or a false claim. It goes on serving until then."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class OldWorkerTooLarge:
    """A worker that drains uses more memory than an old one may."""

    worker_id: int
    rss: int
    limit: int


class ExitCause(enum.StrEnum):
    """What deaths are counted by: four values from the wait status, three that the supervisor knows better."""

    EXIT = "exit"
    SIGNAL = "signal"
    CORE = "core"
    """A signal that dumped a core, or would have, were cores enabled."""
    MEMORY = "memory"
    """The kernel killed it, because its cgroup was out of memory."""
    HANG = "hang"
    BOOT = "boot"
    """It could not start, or not within --boot-timeout."""
    DRAIN_TIMEOUT = "drain_timeout"
    """It had not ended in time after its drain."""


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """A worker's process ended and was reaped; `clean` means exit status 0."""

    worker_id: int
    description: str
    clean: bool = False
    cause: ExitCause = ExitCause.EXIT
    connections: int = 0
    """What it had open."""


@dataclass(frozen=True, slots=True)
class HeartbeatsRead:
    """Seconds since each worker's loop last turned, by worker id; without those that have not beaten yet."""

    ages: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class TrafficRead:
    """How many connections have come since the start, without those that have ended silently. The answer to
    ReadTraffic."""

    arrivals: int


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The server is to stop, `at_once` without a drain; `by` names the signal or the sender.

    The second one of those that are a `signal` is at once too.
    """

    by: str
    at_once: bool = False
    signal: bool = False


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Every worker is to be replaced by one of the next generation, which has these timeouts."""

    by: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """There are to be this many workers."""

    by: str
    workers: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Another supervisor has the sockets and serves."""


@dataclass(frozen=True, slots=True)
class SuccessorRolledBack:
    """The other supervisor died while the workers here were still draining."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened, but something may be due."""


Fact = (
    Started
    | Spawned
    | SpawnFailed
    | WorkerReady
    | WorkerUnable
    | WorkerWaits
    | WorkerStoppedAccepting
    | RecycleRequested
    | OldWorkerTooLarge
    | WorkerDied
    | HeartbeatsRead
    | TrafficRead
    | StopRequested
    | ReloadRequested
    | ScaleRequested
    | HandedOver
    | SuccessorRolledBack
    | TimePassed
)

# --- commands: what to do ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker. Answered by Spawned or SpawnFailed before any other fact, as a fork is not awaited."""

    worker_id: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Have a worker stop accepting, and end with its connections. At most once for each worker."""

    worker_id: int
    until: float | None = None
    """When to abort the connections that are open; None: never."""


@dataclass(frozen=True, slots=True)
class HurryDrain:
    """Have a worker that drains abort its connections at an earlier time."""

    worker_id: int
    until: float
    why: str = ""
    """What is the matter with an old worker, for the log; "": the server stops."""


@dataclass(frozen=True, slots=True)
class ReadHeartbeats:
    """Read the scoreboard. Answered by HeartbeatsRead at once."""


@dataclass(frozen=True, slots=True)
class ReadTraffic:
    """Read how many connections have come. Answered by TrafficRead at once."""


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Tell all workers, before the first of them is to drain, that none will accept afterwards: the server stops."""


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Ask a worker for the stacks of its threads, which it writes even if its loop hangs."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker now (SIGKILL)."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class BeginGeneration:
    """A reload begins: the limits of this generation hold for all workers from now on."""

    generation: int


@dataclass(frozen=True, slots=True)
class GenerationServes:
    """A reload succeeded: what `generation` was made of is in force, in place of the `previous` one."""

    generation: int
    previous: int


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """A reload has ended, because the successor in `slot` did not become ready. A slot with a new worker keeps it."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """Report `event` to the observers."""

    event: Event


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Report that every worker accepts, for the first time."""


@dataclass(frozen=True, slots=True)
class Finish:
    """No worker is left: end with `code`. A `reason` is for the person who started the program."""

    code: ExitCode
    reason: str = ""


Command = (
    Spawn
    | Drain
    | HurryDrain
    | ReadHeartbeats
    | ReadTraffic
    | BeginDrain
    | DumpStacks
    | Kill
    | BeginGeneration
    | GenerationServes
    | GenerationFailed
    | EmitEvent
    | AnnounceReady
    | Finish
)
